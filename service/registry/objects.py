"""Content-addressed bundles on disk: one directory for each digest, published by one rename. Knows no names.

objects/<sha256>/adapter_config.json, adapter_model.safetensors, README.md
objects/.catalogue     id of the catalogue that refers to them
objects/.reserve       room for deletions on a full disk
incoming/              what is being written or removed, see quarantine.py
"""

import logging
import shutil
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from service.errors import Internal, ServiceError
from service.private import make_private
from service.registry.bundle import CARD_FILE, BundleFiles, Stored, replace_file, sync_directory, verify
from service.registry.catalogue import VersionRow
from service.registry.manifest import CONFIG_FILE
from service.registry.quarantine import HEADROOM_BYTES, Quarantine, Staging, storage
from service.registry.tensor_header import WEIGHTS_FILE

OBJECTS = "objects"
RESERVE_BYTES = 2**19  # kept, where others fill the disk up to the last byte

_OWNER = ".catalogue"
_RESERVE = ".reserve"

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Report:
    """What an inspection found.

    Args:
        versions: how many were looked at.
        damaged: digest -> what is wrong; these must not be served.
        repaired: digests whose config was written anew from the catalogue.
    """

    versions: int = 0
    damaged: dict[str, str] = field(default_factory=dict)
    repaired: list[str] = field(default_factory=list)


class ObjectStore:
    """Files of bundles. Callers see to it that one writer runs at a time."""

    def __init__(self, root: Path) -> None:
        self._objects = root / OBJECTS
        self._reserve = self._objects / _RESERVE
        with storage():
            make_private(self._objects, below=True)
            self.quarantine = Quarantine(root / "incoming")
            sync_directory(root)

    def belong_to(self, catalogue: str) -> None:
        """Bind the objects to the catalogue that refers to them.

        Raises:
            Internal: they are another catalogue's, and would be taken for leftovers.
        """
        with storage():
            marker = self._objects / _OWNER
            if not marker.exists():
                replace_file(marker, catalogue.encode())
            owner = marker.read_text()
        if owner != catalogue:
            raise Internal(
                f"the objects in {self._objects} belong to the catalogue {owner}, the database given is {catalogue}; "
                "give each database its own --data-dir, and move adapters with `ipet adapters backup` and `restore`"
            )

    def directory(self, digest: str) -> Path:
        """Where the bundle of a digest lies, or would."""
        return self._objects / digest.removeprefix("sha256:")

    def publish(self, staging: Staging) -> None:
        """Put a finished bundle in its place, over whatever lies there. Raises StorageFull, Internal."""
        self.remove(staging.digest)
        with storage():
            staging.directory.rename(self.directory(staging.digest))
            sync_directory(self._objects)

    def stage(self, files: BundleFiles) -> Staging:
        """Write a bundle durably, to be published. Raises StorageFull: no room; nothing is left behind."""
        staging = self.quarantine.stage()
        try:
            parts = {CONFIG_FILE: files.config, WEIGHTS_FILE: files.weights, CARD_FILE: files.card}
            for name, content in parts.items():
                if content is not None:
                    staging.write(name, content)
            staging.finish()
        except BaseException:
            staging.discard()
            raise
        return staging

    def verify(self, version: Stored, *, thorough: bool) -> str | None:
        """What is wrong with a version's weights, if anything; see `bundle.verify`."""
        return verify(self.directory(version.digest), version, thorough=thorough)

    def inspect(self, rows: Iterable[VersionRow], *, thorough: bool) -> Report:
        """Verify versions; a config that differs from the catalogue's is put back."""
        report = Report()
        for row in rows:
            report.versions += 1
            fault = self.verify(row, thorough=thorough)
            if fault is not None:
                _logger.error("%s@%d cannot be served: %s", row.name, row.version, fault)
                report.damaged[row.digest] = fault
            elif self._restore_config(row, thorough):
                report.repaired.append(row.digest)
        return report

    def _restore_config(self, row: VersionRow, thorough: bool) -> bool:
        """Put back a config whose file is not what the catalogue has; whether that was needed."""
        path = self.directory(row.digest) / CONFIG_FILE
        try:
            if path.stat().st_size == len(row.config) and not (thorough and path.read_bytes() != row.config):
                return False
        except OSError:
            pass
        _logger.warning("%s@%d: %s is damaged and is put back", row.name, row.version, CONFIG_FILE)
        try:
            with storage():
                replace_file(path, row.config)
        except ServiceError as error:
            _logger.warning("%s could not be put back: %s", CONFIG_FILE, error.detail)
        return True

    def remove(self, digest: str) -> None:
        """Remove a bundle in one step, if it is there."""
        self.quarantine.take_away(self.directory(digest))

    def orphans(self, referenced: Container[str]) -> Iterator[str]:
        """Digests of the bundles that lie there and are not `referenced`."""
        with storage():
            for directory in self._objects.iterdir():
                digest = f"sha256:{directory.name}"
                if not directory.name.startswith(".") and digest not in referenced:
                    yield digest

    def keep_reserve(self) -> None:
        """Put room aside for deletions on a full disk, for all processes together, if there is any left."""
        try:
            if not self._reserve.exists() and shutil.disk_usage(self._objects).free >= HEADROOM_BYTES + RESERVE_BYTES:
                replace_file(self._reserve, bytes(RESERVE_BYTES))
        except OSError as error:
            _logger.warning("no room could be put aside: %s", error.strerror)

    def spend_reserve(self) -> None:
        """Give the room that was put aside back to the disk, for a change that frees more."""
        with storage():
            self._reserve.unlink(missing_ok=True)
