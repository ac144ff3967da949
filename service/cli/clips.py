"""Audio files of a command line: files and folders, asked in requests of a bounded size, with what failed named."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import typer

from service.cli.connection import fail, progress_bar

if TYPE_CHECKING:
    from service.client import ProblemError

AUDIO: Final = frozenset({".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".mp4", ".aac", ".webm"})
A_REQUEST: Final = 16  # clips; a service takes at most `--max-clips`, which is 64 unless it says otherwise
A_REQUEST_BYTES: Final = 32 * 2**20
BAD: Final = "bad_audio"
TOO_MUCH: Final = ("audio_too_long", "payload_too_large", "invalid_request")  # one file, or those of a request together

T = TypeVar("T")


def files_in(paths: Sequence[Path]) -> list[Path]:
    """The files among `paths`, and every audio file in the folders among them, by name."""
    found: list[Path] = []
    for path in paths:
        inside = audio_in(path) if path.is_dir() else [path]
        if not inside:
            fail(f"{path} holds no audio file ({', '.join(sorted(AUDIO))})")
        found += inside
    return found


def audio_in(folder: Path) -> list[Path]:
    """Every audio file in a folder and in those within it, by name."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in AUDIO and file.is_file())


@dataclass(slots=True)
class Asked(Generic[T]):
    """What `ask` answers of all files, a few in a request, in their order.

    Attributes:
        bar: what the progress bar says; none is shown where it is empty.
        left_out: files that could not be heard, and why; each is told on standard error.
    """

    files: Sequence[Path]
    ask: Callable[[list[Path]], T]
    bar: str = "asking"
    left_out: "list[tuple[Path, ProblemError]]" = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[list[Path], T]]:
        """The files of each request that was answered, and its answer."""
        done = 0
        with progress_bar(self.bar) as show:
            for chunk in _chunks(self.files):
                show(done, len(self.files))
                yield from self._answers(chunk)
                done += len(chunk)

    def end(self) -> None:
        """Ends the command with 1 where files were left out."""
        if self.left_out:
            raise typer.Exit(1)

    def _answers(self, chunk: list[Path]) -> Iterator[tuple[list[Path], T]]:
        from service.client import ProblemError

        try:
            answer = self.ask(chunk)
        except ProblemError as error:
            at = error.members.get("clip")
            if len(chunk) > 1 and error.code == BAD and isinstance(at, int):
                parts = [chunk[at : at + 1], [*chunk[:at], *chunk[at + 1 :]]]
            elif len(chunk) > 1 and error.code in TOO_MUCH:
                parts = [chunk[: len(chunk) // 2], chunk[len(chunk) // 2 :]]
            elif at == 0:
                typer.echo(f"error: {chunk[0]}: {error.detail}", err=True)
                self.left_out.append((chunk[0], error))
                return
            else:
                raise
            for part in parts:
                yield from self._answers(part)
        else:
            yield chunk, answer


def _chunks(files: Sequence[Path]) -> Iterator[list[Path]]:
    chunk: list[Path] = []
    size = 0
    for file in files:
        of_file = file.stat().st_size
        if chunk and (len(chunk) == A_REQUEST or size + of_file > A_REQUEST_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(file)
        size += of_file
    if chunk:
        yield chunk


def print_csv(columns: list[str], rows: Iterator[list[object]]) -> None:
    """Comma-separated lines as they come, quoted where they must be."""
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(row)
        sys.stdout.flush()
