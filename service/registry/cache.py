"""Copies here of bundles that lie for good elsewhere, of all processes on one data directory together.

<root>/objects/<sha256>/  what was not used for longest makes room
<root>/.lock              held while something takes its place; who reads waits for nobody
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from service.errors import StorageFull
from service.registry.objects import Directory, T
from service.registry.quarantine import HEADROOM_BYTES, LOCK, alone, storage

_KEPT: Final = 0.9  # of the cache, when it is full


class Cache(Directory):
    """Copies of bundles, as many as there is room for. Thread-safe, between processes too.

    Args:
        most: bytes of all that lie here; a larger bundle lies here alone.
    """

    def __init__(self, root: Path, most: int) -> None:
        super().__init__(root)
        self._lock, self._most = root / LOCK, most
        self._sizes: dict[tuple[str, int], int] = {}  # by name and inode: what lies here stays as it is

    def use(self, digest: str, read: Callable[[Path], T]) -> T:
        with suppress(OSError):
            os.utime(self.directory(digest))
        return super().use(digest, read)

    def publish(self, digest: str, directory: Path) -> None:
        with alone(self._lock):
            self._make_room(_size(directory))
            super().publish(digest, directory)

    def require_room(self, size: int) -> None:
        try:
            super().require_room(size)
        except StorageFull:  # of copies, it may be
            with alone(self._lock):
                self._make_room(0, coming=size)
            super().require_room(size)

    @contextmanager
    def bringing(self, digest: str, size: int) -> Iterator[Path]:
        """Where to write a bundle of so many bytes, until it takes its place here, or fails to."""
        self.require_room(size)
        before = self._inode(digest)
        directory = self.quarantine.new_directory()
        with storage():
            directory.mkdir(0o700)
        try:
            yield directory
            if self._inode(digest) in (None, before):  # else another brought it meanwhile
                self.publish(digest, directory)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _inode(self, digest: str) -> int | None:
        with suppress(OSError):
            return self.directory(digest).stat().st_ino
        return None

    def _make_room(self, size: int, coming: int = 0) -> None:
        """Let go what was not used for longest, for `size` bytes more here, or so many `coming` to the disk."""
        copies, sizes = [], {}
        for place in self._objects.glob("[!.]*"):
            with suppress(OSError):  # another process let it go
                known = place.stat()
                key = place.name, known.st_ino
                sizes[key] = self._sizes.get(key) or _size(place)
                copies.append((known.st_mtime, sizes[key], place.name))
        self._sizes, held = sizes, size + sum(sizes.values())
        lacking = coming + HEADROOM_BYTES - self.free if coming else 0
        if lacking > held:  # all of them would be too little: the disk is full of something else
            lacking = 0
        most = min(_KEPT * self._most if held > self._most else held, held - lacking)
        for _, its_size, name in sorted(copies):
            if held <= most:
                break
            self.remove(name)
            held -= its_size


def _size(directory: Path) -> int:
    return sum(one.stat().st_size for one in directory.iterdir())
