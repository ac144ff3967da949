"""Where files lie on their way in and out, never served. Knows no manifests.

incoming/<random>/        one process's own, locked while the process lives; swept by the others after its death
incoming/<random>/<random>/   one bundle
"""

import errno
import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from service.errors import Internal, RegistryUnavailable, StorageFull
from service.private import make_private

HEADROOM_BYTES = 15 * 2**19  # left free by uploads, so that a full disk still lets the catalogue delete
LOCK = ".lock"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENOTCONN, errno.EROFS)


@contextmanager
def storage() -> Iterator[None]:
    """Faults of the disk as the service's errors. Raises StorageFull, RegistryUnavailable, Internal."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise StorageFull(f"the disk of the data directory is full: {error.strerror}") from error
        if error.errno in _GONE:
            raise RegistryUnavailable(f"the data directory cannot be used: {error}", retry_after=2.0) from error
        raise Internal(f"the registry's files failed: {error}") from error


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold a lock that one thread of all processes can hold. Raises as `storage`."""
    with storage():
        descriptor = os.open(lock, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def require_room(directory: Path, size: int) -> None:
    """Raise StorageFull where the disk of a directory has no room for so many bytes beside what is kept free."""
    with storage():
        free = shutil.disk_usage(directory).free
    if free < size + HEADROOM_BYTES:
        raise StorageFull(
            f"the disk of the data directory has {free:,} bytes free, of which {HEADROOM_BYTES:,} are kept for "
            f"the registry's own use: no room for another {size:,}"
        )


class Quarantine:
    """This process's directory under `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        with storage():
            make_private(root, below=True)
            with alone(root / LOCK):  # keeps a sweep from a directory that is not locked yet
                self._own = Path(tempfile.mkdtemp(dir=root))
                self._lock = os.open(self._own / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
                fcntl.flock(self._lock, fcntl.LOCK_EX)

    def new_directory(self) -> Path:
        """Where a new bundle may be written; it is not made yet."""
        return self._own / uuid.uuid4().hex

    def take_away(self, directory: Path) -> None:
        """Remove a directory from where it lies in one step, if it is there; this needs no room on the disk."""
        trash = self.new_directory()
        with storage(), suppress(FileNotFoundError):
            directory.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)

    def sweep(self) -> int:
        """Remove what dead processes left behind; how many directories that were."""
        swept = 0
        with alone(self._root / LOCK):
            for directory in self._root.iterdir():
                if directory.is_dir() and directory != self._own and not _is_locked(directory / LOCK):
                    shutil.rmtree(directory, ignore_errors=True)
                    swept += 1
        return swept

    def close(self) -> None:
        """Remove the directory and give up its lock."""
        shutil.rmtree(self._own, ignore_errors=True)
        with suppress(OSError):
            os.close(self._lock)


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError:  # of this process's own, such as no descriptors left: whose it is cannot be told
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
