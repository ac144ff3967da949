"""The files of jobs: `body` as it was sent, `log-N` of what attempt N has found so far, `result`; a directory each."""

import hashlib
import io
import os
import shutil
from pathlib import Path
from typing import BinaryIO, Final

from service.errors import Internal
from service.private import FILE_MODE, make_private, replace_file, sync_directory
from service.registry.quarantine import require_room, storage

BODY: Final = "body"
_PIECE_BYTES: Final = 2**20
INDEX: Final = "index"  # where in a body what lies, as JSON
RESULT: Final = "result"


class Spool:
    """A body on its way to the disk, in a directory that is nobody's yet.

    Attributes:
        size: bytes so far.
    """

    def __init__(self, directory: Path) -> None:
        self.size = 0
        self._digest = hashlib.sha256()
        self._directory = directory / f".{os.urandom(16).hex()}"
        with storage():
            make_private(self._directory)
            self.path.touch(FILE_MODE)

    @property
    def digest(self) -> bytes:
        return self._digest.digest()

    @property
    def path(self) -> Path:
        return self._directory / BODY

    def write(self, piece: bytes) -> None:
        """Raises StorageFull: what is left is for the registry."""
        require_room(self._directory, len(piece))
        _append(self.path, piece)
        self._digest.update(piece)
        self.size += len(piece)

    def keep_index(self, content: bytes) -> None:
        """Raises StorageFull."""
        _append(self._directory / INDEX, content, durable=True)

    def become(self, directory: Path) -> None:
        """Give it the directory of a job, durably."""
        with storage():
            _append(self.path, b"", durable=True)
            self._directory.rename(directory)
            sync_directory(directory)
            sync_directory(directory.parent)

    def discard(self) -> None:
        """Remove it, unless it has become a job's."""
        shutil.rmtree(self._directory, ignore_errors=True)


class Log:
    """What one attempt of a job has found, a chunk at a time; what was appended counts once the database says so.

    Args:
        attempt: whose log this will be: nobody else writes to it, also not who still believes in an older one.
        before: the attempt whose log it goes on from, and how many bytes of that count.
    """

    def __init__(self, directory: Path, attempt: int, before: tuple[int, int]) -> None:
        self._directory = directory
        self._path = directory / f"log-{attempt}"
        last, left = before
        with storage(), open(self._path, "wb", opener=_private) as file:
            source = (directory / f"log-{last}").open("rb") if left else io.BytesIO()
            with source:
                while left and (piece := source.read(min(left, _PIECE_BYTES))):
                    left -= file.write(piece)
        if left:
            raise Internal(f"the last {left} bytes of what the job had found are gone")

    def read(self) -> BinaryIO:
        """What there is, from its beginning; to be closed."""
        return self._path.open("rb")

    def append(self, chunk: bytes) -> int:
        """Add a chunk durably; the bytes there are now. Raises StorageFull."""
        require_room(self._directory, len(chunk))
        return _append(self._path, chunk, durable=True)

    def outlive(self) -> None:
        """Remove the logs of other attempts, none of which counts any more."""
        for path in self._directory.glob("log-*"):
            if path != self._path:
                path.unlink(missing_ok=True)


def keep_result(directory: Path, content: bytes) -> None:
    """Write what came of a job, durably."""
    with storage():
        replace_file(directory / RESULT, content)
        sync_directory(directory)


def leave_result(directory: Path) -> None:
    """Remove everything of a job that has ended but its result."""
    for path in directory.iterdir() if directory.is_dir() else ():
        if path.name != RESULT:
            path.unlink(missing_ok=True)


def last_change(path: Path) -> float:
    """When any file of a directory was last written to, seconds since 1970."""
    return max(one.stat().st_mtime for one in (path, *path.glob("*")))


def remove(directory: Path) -> None:
    """Remove all files of a job: first its name, so that no half of it is ever found."""
    grave = directory.with_name(f".{os.urandom(16).hex()}")
    try:
        directory.rename(grave)
    except FileNotFoundError:
        return
    shutil.rmtree(grave, ignore_errors=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, FILE_MODE)


def _append(path: Path, content: bytes, *, durable: bool = False) -> int:
    """The bytes there are now. Raises StorageFull."""
    with storage(), open(path, "ab", opener=_private) as file:
        file.write(content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
        return file.tell()
