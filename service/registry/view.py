"""What the registry holds, as its readers see it: in memory, without SQL. Knows the files only by their sizes.

Readers see each adapter as it was before or after a change, never between.
"""

import logging
import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from service.errors import AdapterFailed, InvalidBundle, ServiceError, UnknownAdapter
from service.model.adapter import AdapterWeights
from service.registry import audit
from service.registry.adapters import AdapterRecord, AdapterVersion, split_reference
from service.registry.bundle import CARD_FILE, WEIGHTS_FILE, open_weights, read_verified, read_weights
from service.registry.catalogue import LIVE, AdapterRows, Catalogue
from service.registry.fit import Fit
from service.registry.objects import ObjectStore, T

_RESOLVED_KEPT = 4096  # references

_logger = logging.getLogger(__name__)

Gone = Callable[[Sequence[AdapterVersion]], None]


class RegistryView:
    """Reads of one registry. Thread-safe; none but `history` touches SQL."""

    def __init__(self, catalogue: Catalogue, objects: ObjectStore, fit: Fit) -> None:
        self._catalogue = catalogue
        self._objects = objects
        self._fit = fit
        self._lock = threading.Lock()  # held by writers, and by whoever takes over what others wrote
        self._records: dict[str, AdapterRecord] = {}  # each is replaced whole; readers take no lock
        self._names: list[str] = []  # sorted; replaced whole
        self._resolved: dict[str, AdapterVersion] = {}  # by reference; begun anew after each change of the records
        self._damage: dict[str, str] = {}  # digest -> what is wrong with its files, as far as is known
        self._on_gone: list[Gone] = []

    def resolve(self, reference: str) -> AdapterVersion:
        """The version that `name`, `name@2` or `name@canary` means, fit for the live backbone.

        Raises:
            UnknownAdapter, UnknownVersion: there is none.
            BackboneMismatch, AdapterFailed: it cannot run on this server.
        """
        resolved = self._resolved  # what is found among records of before a change goes with them
        version = resolved.get(reference)
        if version is None:
            name, selector = split_reference(reference)
            version = self.record(name, reference).find(LIVE if selector is None else selector)
            self._fit.check_fit(version)
            if len(resolved) < _RESOLVED_KEPT:
                resolved[reference] = version
        return version

    def version(self, name: str, number: int) -> AdapterVersion:
        """One version, fit for the live backbone or not (for listing and downloads)."""
        return self.record(name).version(number)

    def walk(self, after: str = "") -> Iterator[AdapterRecord]:
        """All adapters, by name; those behind `after`. A page costs its own length, however many there are."""
        names = self._names
        for at in range(bisect_right(names, after), len(names)):
            record = self._records.get(names[at])
            if record is not None:
                yield record

    def record(self, name: str, reference: str = "") -> AdapterRecord:
        """One adapter, asked for by `reference`. Raises UnknownAdapter."""
        record = self._records.get(name)
        if record is None:
            raise UnknownAdapter(f"there is no adapter {name[:80]!a}", adapter=(reference or name)[:130])
        return record

    def history(self, name: str, limit: int, before: int | None = None) -> list[audit.Event]:
        """Who changed the adapter, when and what, newest first; also of a deleted one.

        Args:
            before: id of the last event of the page before.

        Raises:
            UnknownAdapter: there never was one of that name.
            RegistryUnavailable: the database cannot be reached.
        """
        with self._catalogue.read() as transaction:
            if not transaction.last_version(name):
                raise UnknownAdapter(f"there never was an adapter {name[:80]!a}", adapter=name[:80])
            return audit.history(transaction.connection, name, limit, before)

    def problem(self, version: AdapterVersion) -> str | None:
        """Why a version cannot run on this server, as far as that is known without reading its weights."""
        try:
            self._fit.check_fit(version)
        except ServiceError as error:
            return error.detail
        return self._objects.verify(version, thorough=False) or self._damage.get(version.digest)

    def weights_path(self, version: AdapterVersion) -> Path:
        """Where `adapter_model.safetensors` lies on this machine. Raises as `load`."""
        return self._objects.directory(version.digest) / WEIGHTS_FILE

    def whole_weights(self, version: AdapterVersion) -> BinaryIO:
        """`weights_path`, open, once the file there has been read and found to be what was uploaded.

        Raises:
            AdapterFailed: it is missing or damaged.
            RegistryUnavailable: it is where it cannot be reached now; also of `card_bytes` and `load`.
        """
        try:
            file = self._use(version, lambda place: open_weights(place, version))
        except InvalidBundle as error:
            raise self._failed(version, error.detail) from error
        self._damage.pop(version.digest, None)
        return file

    def card_bytes(self, version: AdapterVersion) -> bytes | None:
        """The model card, if it came with one. Raises as `whole_weights`."""

        def read(place: Path) -> bytes | None:
            if CARD_FILE in os.listdir(place):
                return (place / CARD_FILE).read_bytes()
            place.stat()  # else it was let go, and listed without what had gone by then
            return None

        try:
            return self._use(version, read)
        except InvalidBundle as error:
            raise self._failed(version, error.detail) from error
        except OSError as error:
            reason = f"{version.reference}: {CARD_FILE} cannot be read: {error.strerror}"
            raise AdapterFailed(reason, adapter=version.reference) from error  # its weights may be well

    def load(self, version: AdapterVersion) -> AdapterWeights:
        """Read a version's weights, checking them against its digest.

        Raises:
            AdapterFailed: missing, unreadable or damaged files.
            BackboneMismatch: made for another backbone.
        """
        self._fit.check_fit(version)
        try:
            weights = self._use(version, lambda place: read_verified(place, version))
            tensors = read_weights(weights, version.manifest, self._fit.backbone)
        except InvalidBundle as error:
            raise self._failed(version, error.detail) from error
        self._damage.pop(version.digest, None)
        return AdapterWeights.from_tensors(version.manifest.adapter_spec(), tensors)

    def on_gone(self, listener: Gone) -> None:
        """Call `listener` with versions that were deleted, here or by another process."""
        self._on_gone.append(listener)

    def _use(self, version: AdapterVersion, read: Callable[[Path], T]) -> T:
        try:
            return self._objects.use(version.digest, read)
        finally:
            record = self._records.get(version.name)
            if record is None or version.version not in {one.version for one in record.versions}:
                self._used_after_all(version)

    def _used_after_all(self, version: AdapterVersion) -> None:
        """A version was deleted before its files had been read: a copy of them may have come since."""

    # For writers, who hold the lock

    def _take_over(self, changed: Iterable[AdapterRows]) -> None:
        """Show adapters as the catalogue has them now; the deleted ones come without versions."""
        is_reshaped = False
        gone: list[AdapterVersion] = []
        for rows in changed:
            before = self._records.get(rows.name)
            record = self._fit.build_record(rows, before)
            if record is None:
                self._records.pop(rows.name, None)
            else:
                self._records[rows.name] = record
            is_reshaped |= (before is None) != (record is None)
            if before is not None:
                kept = {row.version for row in rows.versions}
                gone += [version for version in before.versions if version.version not in kept]
        self._resolved = {}
        if is_reshaped:
            self._names = sorted(self._records)
        for listener in self._on_gone if gone else ():
            listener(gone)

    def _failed(self, version: AdapterVersion, reason: str) -> AdapterFailed:
        _logger.error("%s: %s", version.reference, reason)
        self._damage[version.digest] = reason
        return AdapterFailed(f"{version.reference}: {reason}", adapter=version.reference)
