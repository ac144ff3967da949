"""Commands over recordings: `events` of files and folders by a running server; `soundscapes`, made of clips."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from service.cli.clips import audio_in
from service.cli.connection import DEFAULT_URL, Key, Url, connected, fail, progress_bar, told

if TYPE_CHECKING:
    from service.cli.journal import Answer, Journal
    from service.client import Client

OF_ALL: Final = ("unknown_adapter", "unknown_version", "wrong_task", "backbone_mismatch")  # refused of any recording

Hop = Annotated[float | None, typer.Option(help="Seconds from one window to the next; 0.5 unless told.")]
Threshold = Annotated[float | None, typer.Option(help="Of all labels; the manifest's, else 0.5, unless told.")]


def soundscapes(
    data: Annotated[Path, typer.Option("--data", exists=True, file_okay=False, help="Directory of the clips.")],
    out: Annotated[Path, typer.Option("--out", file_okay=False, help="Directory to write; made if need be.")],
    recipe: Annotated[
        str | None, typer.Option(help="Whose [data] says how clips lie; else a CSV or a folder for each class.")
    ] = None,
    part: Annotated[Literal["train", "selection", "report"], typer.Option(help="Of the data set.")] = "report",
    count: Annotated[int, typer.Option(min=1, help="How many soundscapes.")] = 20,
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="Length of each.")] = 60.0,
    gap: Annotated[tuple[float, float], typer.Option(help="Seconds from an event to the next, least and most.")] = (
        2.0,
        8.0,
    ),
    snr: Annotated[tuple[float, float], typer.Option(help="Level of events over the noise, dB.")] = (15.0, 30.0),
    noise: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Folder of noises; coloured noise without it.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
) -> None:
    """Make recordings with known events: clips over quiet noise, and events.csv with what is heard when."""
    with told(), progress_bar("mixing") as progress:
        from service.training.datasets.load import guess_source, load_dataset
        from service.training.recipe import read_recipe
        from service.training.shipped import find_recipe
        from service.training.soundscapes import TABLE, Scene, make_soundscapes

        source = guess_source(data) if recipe is None else read_recipe(find_recipe(recipe)).data
        scene = Scene(seconds, gap, snr)
        events = make_soundscapes(
            load_dataset(data, source), part, out, count, scene, seed=seed, noise=noise, progress=progress
        )
    typer.echo(f"{count} soundscapes, {events} events: {out / TABLE}")


@dataclass(frozen=True, slots=True)
class _Recording:
    path: Path
    name: str  # as tables tell it, and below OUT


def events(
    paths: Annotated[
        list[Path], typer.Argument(metavar="FILE|FOLDER...", exists=True, help="Recordings, or folders of them.")
    ],
    adapter: Annotated[
        list[str], typer.Option("--adapter", "-a", help="`name`, `name@2` or `name@alias`; may be repeated.")
    ],
    form: Annotated[
        Literal["csv", "audacity", "raven", "json", "parquet"], typer.Option("--format", help="Of the tables.")
    ] = "csv",
    out: Annotated[
        Path | None, typer.Option("--out", file_okay=False, help="Directory for a table of each; else one is printed.")
    ] = None,
    combined: Annotated[
        bool, typer.Option("--combined", help="One table of all in OUT, events.csv and so on.")
    ] = False,
    hop: Hop = None,
    threshold: Threshold = None,
    hysteresis: Annotated[float | None, typer.Option(help="Events end below it; the manifest's unless told.")] = None,
    smoothing: Annotated[float | None, typer.Option(help="Seconds; the manifest's unless told.")] = None,
    min_seconds: Annotated[float | None, typer.Option(help="Shorter events are dropped.")] = None,
    merge_gap: Annotated[float | None, typer.Option(help="Shorter gaps are closed, seconds.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Recordings that are sent at once.")] = 2,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ask again for what is done in OUT.")] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Tell what is heard when in recordings of up to hours, by a running server.

    With --out it goes on where it was stopped: recordings that have not changed and were asked for the same are not
    sent again. Ends with 1 where some could not be heard to their end; what was heard of them is kept.
    """
    from service.cli.journal import ENDINGS, Journal, check_form, rows_of, table_of, write_whole

    names = ("hop", "threshold", "hysteresis", "smoothing", "min_seconds", "merge_gap")
    values = (hop, threshold, hysteresis, smoothing, min_seconds, merge_gap)
    asked: dict[str, Any] = {name: value for name, value in zip(names, values, strict=True) if value is not None}
    with connected(url, key) as client:
        check_form(form)
        recordings = _recordings(paths)
        asked["adapter"] = [_pinned(client, reference) for reference in adapter]
        journal = None if out is None else Journal(out, asked, fresh)
        answers: dict[str, Answer] = {}
        faults = 0
        for recording, answer in _heard(client, recordings, asked, journal, workers):
            problem = answer.get("error")
            if problem is not None:
                faults += 1
                typer.echo(f"error: {recording.path}: {problem['detail']}", err=True)
            if "events" not in answer:
                continue
            answers[recording.name] = answer
            if out is not None and journal is not None:
                if not combined:
                    rows = rows_of(recording.name, answer)
                    write_whole(out / f"{recording.name}{ENDINGS[form]}", table_of(form, rows))
                journal.keep(recording.path, answer)
        if out is None or combined:
            rows = [row for one in recordings for row in rows_of(one.name, answers.get(one.name, {"events": []}))]
            table = table_of(form, rows)
            if out is None:
                typer.echo(table, nl=False)
            else:
                write_whole(out / f"events{ENDINGS[form]}", table)
    if faults:
        raise typer.Exit(1)


def _recordings(paths: list[Path]) -> list[_Recording]:
    """The files, and the audio files in the folders, each with a name of its own."""
    found = []
    for path in paths:
        inside = audio_in(path) if path.is_dir() else [path]
        if not inside:
            fail(f"{path} holds no audio file")
        found += [_Recording(one, one.relative_to(path).as_posix() if path.is_dir() else one.name) for one in inside]
    known: dict[str, Path] = {}
    for one in found:
        if known.setdefault(one.name, one.path) != one.path:
            fail(f"{known[one.name]} and {one.path} would both be {one.name} in tables; ask for the folder above them")
    return [_Recording(path, name) for name, path in known.items()]


def _pinned(client: "Client", reference: str) -> str:
    """The version that a reference means now, so that all recordings are heard by the same."""
    from service.client import ProblemError

    name, _, version = reference.partition("@")
    try:
        return f"{name}@{version if version.isdigit() else client.adapter(name)['aliases'][version or 'live']}"
    except ProblemError as error:
        if error.code != "forbidden":  # a key that may only ask
            raise
    except KeyError:
        pass  # which the service tells better
    return reference


def _heard(
    client: "Client", recordings: list[_Recording], asked: dict[str, Any], journal: "Journal | None", workers: int
) -> Iterator[tuple[_Recording, "Answer"]]:
    """Each recording with its answer, those of the journal first, then as they come."""
    left: dict[_Recording, int] = {}  # with their bytes
    known = 0
    for one in recordings:
        try:
            size = one.path.stat().st_size
            answer = None if journal is None else journal.answer(one.path)
        except OSError as error:
            yield one, _fault(error)
            continue
        if answer is None:
            left[one] = size
        else:
            known += 1
            yield one, answer
    seconds, begun = 0.0, time.monotonic()
    pool = ThreadPoolExecutor(workers)
    with _bytes_bar(sum(left.values())) as show:
        try:
            asking: dict[Future[Answer], _Recording] = {
                pool.submit(_ask, client, one.path, asked, lambda count: show(count, "")): one for one in left
            }
            for future in as_completed(asking):
                answer = future.result()
                seconds += answer.get("audio", {}).get("seconds", 0.0)
                show(0, f"{seconds / (time.monotonic() - begun):.0f} s of audio a second")
                yield asking[future], answer
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            client.close()  # which ends what is under way
    rate = seconds / max(time.monotonic() - begun, 1e-9)
    before = f", {known} known from before" if known else ""
    typer.echo(f"{len(recordings)} recordings{before}; {seconds:.0f} s of audio, {rate:.0f} a second", err=True)


def _ask(client: "Client", path: Path, asked: dict[str, Any], sent: Callable[[int], None]) -> "Answer":
    """The service's answer, or `{"error"}` with what is wrong. Raises ClientError for what no recording can help."""
    from service.client import ConnectionFailed, ProblemError

    try:
        return client.events(path, **asked, sent=sent)
    except ProblemError as error:
        if error.status in (401, 403) or error.code in OF_ALL:
            raise
        return {"error": {**error.members, "detail": error.detail}}
    except ConnectionFailed as error:
        if not error.sent:
            raise
        return _fault(error)
    except OSError as error:
        return _fault(error)


def _fault(error: Exception) -> "Answer":
    return {"error": {"detail": str(error)}}


@contextmanager
def _bytes_bar(total: int) -> Iterator[Callable[[int, str], None]]:
    """A bar of bytes sent and, beside it, how fast audio is heard; on a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("listening", total=total)
        yield lambda count, note: bar.update(task, advance=count, description=note or None)
