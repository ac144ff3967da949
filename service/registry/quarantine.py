"""Where files lie on their way in and out: written durably, hashed as they arrive, never served. Knows no manifests.

incoming/<random>/        one process's own, locked while the process lives; swept by the others after its death
incoming/<random>/<random>/   one bundle
"""

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from service.errors import DeadlineExceeded, Internal, RegistryUnavailable, StorageFull
from service.private import make_private
from service.registry.bundle import CARD_FILE, digest_of_hashes, sync_directory
from service.registry.manifest import CONFIG_FILE
from service.registry.tensor_header import WEIGHTS_FILE

FILES = (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE)
HEADROOM_BYTES = 15 * 2**19  # left free by uploads, so that a full disk still lets the catalogue delete
_LOCK = ".lock"
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


class Staging:
    """One bundle that is being written; `digest` and `size` are of what was written. Thread-safe.

    It belongs to whoever received it, until somebody publishes it: from then on to the publisher alone.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.sizes: dict[str, int] = {}
        self._files: dict[str, BinaryIO] = {}
        self._hashes = {file: hashlib.sha256() for file in FILES}
        self._lock = threading.Lock()
        self._is_published = False
        self._is_gone = False

    @property
    def digest(self) -> str:
        """Of the config and the weights written so far."""
        return digest_of_hashes(self._hashes[CONFIG_FILE].digest(), self._hashes[WEIGHTS_FILE].digest())

    @property
    def digest_with_card(self) -> str:
        """Of all three files."""
        return f"sha256:{hashlib.sha256(b''.join(one.digest() for one in self._hashes.values())).hexdigest()}"

    def path(self, file: str) -> Path:
        return self.directory / file

    def write(self, file: str, content: bytes) -> None:
        """Append to a file of the bundle. Raises StorageFull."""
        with self._lock, storage():
            self._check_there()
            if not self.sizes:
                self.directory.mkdir(0o700, exist_ok=True)
            if (free := shutil.disk_usage(self.directory).free) < len(content) + HEADROOM_BYTES:
                raise StorageFull(
                    f"the disk of the data directory has {free:,} bytes free, of which {HEADROOM_BYTES:,} are kept for "
                    f"the registry's own use: no room for another {len(content):,}"
                )
            if file not in self._files:
                self._files[file] = self.path(file).open("wb")
            self._files[file].write(content)
            self.sizes[file] = self.sizes.get(file, 0) + len(content)
            self._hashes[file].update(content)

    def finish(self) -> None:
        """Make everything written so far durable. Raises StorageFull."""
        with self._lock, storage():
            self._check_there()
            for file in self._files.values():
                file.flush()
                os.fchmod(file.fileno(), 0o600)
                os.fsync(file.fileno())
                file.close()
            self._files.clear()
            sync_directory(self.directory)

    @contextmanager
    def being_published(self) -> Iterator[None]:
        """Take it over: until the end, when what was not published goes, nobody else's `discard` does anything.

        Raises:
            DeadlineExceeded: it was discarded before.
        """
        with self._lock:
            self._check_there()
            self._is_published = True
        try:
            yield
        finally:
            with self._lock:
                self._remove()

    def discard(self) -> None:
        """Remove what is still here, unless it is being published, or was."""
        with self._lock:
            if not self._is_published:
                self._remove()

    def _check_there(self) -> None:
        if self._is_gone:
            raise DeadlineExceeded("the upload was given up before it was whole; nothing was changed")

    def _remove(self) -> None:
        self._is_gone = True
        for file in self._files.values():
            with suppress(OSError):  # what it still buffers has no room; it goes anyway
                file.close()
        self._files.clear()
        shutil.rmtree(self.directory, ignore_errors=True)


class Quarantine:
    """This process's directory under `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        with storage():
            make_private(root, below=True)
            with self._alone():
                self._own = Path(tempfile.mkdtemp(dir=root))
                self._lock = os.open(self._own / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
                fcntl.flock(self._lock, fcntl.LOCK_EX)

    def stage(self) -> Staging:
        """A new bundle to write; its directory is made with its first file."""
        return Staging(self._own / uuid.uuid4().hex)

    def take_away(self, directory: Path) -> None:
        """Remove a directory from where it lies in one step, if it is there; this needs no room on the disk."""
        trash = self._own / uuid.uuid4().hex
        with storage(), suppress(FileNotFoundError):
            directory.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)

    def sweep(self) -> int:
        """Remove what dead processes left behind; how many directories that were."""
        swept = 0
        with storage(), self._alone():
            for directory in self._root.iterdir():
                if directory.is_dir() and directory != self._own and not _is_locked(directory / _LOCK):
                    shutil.rmtree(directory, ignore_errors=True)
                    swept += 1
        return swept

    def close(self) -> None:
        """Remove the directory and give up its lock."""
        shutil.rmtree(self._own, ignore_errors=True)
        with suppress(OSError):
            os.close(self._lock)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps a sweep from a directory that its owner has not locked yet."""
        descriptor = os.open(self._root / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
