"""Content-addressed bundles: what a place for them can do, and the directory on disk, published by one rename.

objects/<sha256>/adapter_config.json, adapter_model.safetensors, README.md
objects/.catalogue     id of the catalogue that refers to them
objects/.reserve       room for deletions on a full disk
incoming/              what is being written or removed, see quarantine.py
"""

import logging
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar

from service.errors import Internal, InvalidBundle
from service.private import make_private, replace_file, sync_directory
from service.registry.adapters import VersionRow
from service.registry.bundle import CARD_FILE, WEIGHTS_FILE, BundleFiles, Stored, check_weights
from service.registry.manifest import CONFIG_FILE
from service.registry.quarantine import HEADROOM_BYTES, Quarantine, require_room, storage

OBJECTS = "objects"
RESERVE_BYTES = 2**19  # kept, where others fill the disk up to the last byte

OWNER = ".catalogue"
_RESERVE = ".reserve"

_logger = logging.getLogger(__name__)

T = TypeVar("T")


class ObjectStore(Protocol):
    """Where the files of bundles lie for good, each under its digest.

    A bundle is sent, which may take long, then published in `local`, where one caller at a time publishes or removes.
    Where it cannot be reached, RegistryUnavailable is raised by everything but `verify` without `thorough`.
    """

    @property
    def local(self) -> "Directory":
        """What of them lies on this machine."""

    def belong_to(self, catalogue: str) -> None:
        """Bind the objects to the catalogue that refers to them.

        Raises:
            Internal: they are another catalogue's, and would be taken for leftovers.
        """

    def check(self) -> None:
        """Raise RegistryUnavailable unless it can be reached."""

    def sizes(self) -> dict[str, int | None]:
        """The digests of all that lies there -> bytes of their weights, None where these are missing."""

    def send(self, digest: str, directory: Path) -> None:
        """Bring the files of a finished bundle to where they lie for good, unless that is here."""

    def settle(self, digest: str, directory: Path) -> None:
        """Know that what was sent from a directory has its rows by now, or never will."""

    def leftovers(self, digest: str) -> tuple[list[str], float]:
        """What to `discard` where, later than this, no version is found to have the digest.

        Returns:
            Its keys, and seconds until the rest is known to be leftovers too; 0 where that is all.
        """

    def discard(self, keys: list[str]) -> None:
        """Remove leftovers; these are none that anybody could publish meanwhile."""

    def directory(self, digest: str) -> Path:
        """Where the files of a bundle lie on this machine, or would. Raises InvalidBundle: they are nowhere."""

    def use(self, digest: str, read: Callable[[Path], T]) -> T:
        """What `read` returns of a directory with a bundle's files, which may be another or none when it has returned.

        Args:
            read: raises InvalidBundle or FileNotFoundError where files are damaged or gone; called again with those
                that were brought then, if they could be.
        """

    def verify(self, version: Stored, *, thorough: bool) -> str | None:
        """What is wrong with a version's weights where they lie for good, if anything; see `bundle.check_weights`.

        Args:
            thorough: read every byte; else compare sizes, as far as that costs nothing.
        """


class Directory:
    """Files of bundles in a directory of this machine, or one that several share."""

    def __init__(self, root: Path) -> None:
        self._objects = root / OBJECTS
        self._reserve = self._objects / _RESERVE
        with storage():
            make_private(self._objects, below=True)
            self.quarantine = Quarantine(root / "incoming")
            sync_directory(root)

    @property
    def local(self) -> "Directory":
        return self

    def belong_to(self, catalogue: str) -> None:
        with storage():
            marker = self._objects / OWNER
            if not marker.exists():
                replace_file(marker, catalogue.encode())
            require_owner(str(self._objects), marker.read_text(), catalogue)

    def check(self) -> None:
        with storage():
            (self._objects / OWNER).stat()

    def directory(self, digest: str) -> Path:
        return self._objects / digest.removeprefix("sha256:")

    def send(self, digest: str, directory: Path) -> None:
        """Nothing: a rename takes no time."""

    def settle(self, digest: str, directory: Path) -> None:
        """Nothing was sent."""

    def leftovers(self, digest: str) -> tuple[list[str], float]:
        return [], 0.0

    def discard(self, keys: list[str]) -> None:
        """There are none."""

    def publish(self, digest: str, directory: Path) -> None:
        """Put a finished bundle in its place, over whatever lies there. Raises StorageFull, Internal."""
        self.remove(digest)
        with storage():
            directory.rename(self.directory(digest))
            sync_directory(self._objects)

    def stage(self, files: BundleFiles) -> Path:
        """Write a bundle durably, to be published. Raises StorageFull: no room; nothing is left behind."""
        parts = {CONFIG_FILE: files.config, WEIGHTS_FILE: files.weights}
        parts |= {} if files.card is None else {CARD_FILE: files.card}
        directory = self.quarantine.new_directory()
        try:
            with storage():
                self.require_room(sum(map(len, parts.values())))
                directory.mkdir(0o700)
                for name, content in parts.items():
                    replace_file(directory / name, content)
                sync_directory(directory)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        return directory

    def require_room(self, size: int) -> None:
        """Raise StorageFull where its disk has no room for so many bytes more."""
        require_room(self._objects, size)

    def use(self, digest: str, read: Callable[[Path], T]) -> T:
        return read(self.directory(digest))

    def verify(self, version: Stored, *, thorough: bool) -> str | None:
        try:
            check_weights(self.directory(version.digest), version, thorough=thorough)
        except InvalidBundle as error:
            return error.detail
        return None

    def restore_config(self, row: VersionRow, *, thorough: bool) -> bool:
        """Put back a config whose file is not what the catalogue has; whether that was needed."""
        path = self.directory(row.digest) / CONFIG_FILE
        with suppress(OSError):
            if path.stat().st_size == len(row.config) and not (thorough and path.read_bytes() != row.config):
                return False
        _logger.warning("%s@%d: %s is damaged and is put back", row.name, row.version, CONFIG_FILE)
        try:
            replace_file(path, row.config)
        except OSError as error:
            _logger.warning("%s could not be put back: %s", CONFIG_FILE, error.strerror)
        return True

    def remove(self, digest: str) -> None:
        """In one step."""
        self.quarantine.take_away(self.directory(digest))

    def sizes(self) -> dict[str, int | None]:
        with storage():
            there = (one for one in self._objects.iterdir() if not one.name.startswith("."))
            return {f"sha256:{one.name}": _size(one / WEIGHTS_FILE) for one in there}

    @property
    def free(self) -> int:
        """Bytes free on its disk."""
        with storage():
            return shutil.disk_usage(self._objects).free

    def keep_reserve(self) -> None:
        """Put room aside for deletions on a full disk, for all processes together, if there is any left."""
        try:
            if not self._reserve.exists() and self.free >= HEADROOM_BYTES + RESERVE_BYTES:
                replace_file(self._reserve, bytes(RESERVE_BYTES))
        except OSError as error:
            _logger.warning("no room could be put aside: %s", error.strerror)

    def spend_reserve(self) -> None:
        """Give what was put aside back to a disk that has no room left, for a change that frees more."""
        with storage():
            if self.free < RESERVE_BYTES:
                self._reserve.unlink(missing_ok=True)


def require_owner(place: str, owner: str, catalogue: str) -> None:
    """Raise Internal where objects that belong to one catalogue are to belong to another."""
    if owner != catalogue:
        raise Internal(
            f"the objects in {place} belong to the catalogue {owner}, the database given is {catalogue}; give each "
            "database its own --data-dir or --objects, and move adapters with `ipet adapters backup` and `restore`"
        )


def _size(path: Path) -> int | None:
    with suppress(OSError):
        return path.stat().st_size
    return None
