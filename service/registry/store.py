"""The registry: named, versioned adapters, durable on disk and known in memory. Knows no device and no HTTP.

What a method returned is there after a crash. The order of an upload is: check, write the files durably,
commit the catalogue's row, publish in memory; of a deletion, the same backwards.
"""

import logging
import threading
from pathlib import Path

from service.errors import (
    AdapterFailed,
    InvalidBundle,
    InvalidRequest,
    ServiceError,
    StorageFull,
    UnknownAdapter,
    UnknownVersion,
    VersionIsLive,
    WrongTask,
)
from service.model.adapter import AdapterWeights
from service.model.spec import BackboneSpec, TaskType
from service.registry import records
from service.registry.admission import Admission
from service.registry.bundle import CARD_FILE, BundleFiles, digest, read_bundle, read_weights
from service.registry.catalogue import CATALOGUE_FILE, LIVE, AdapterRows, Catalogue
from service.registry.manifest import ManifestLimits, parse_manifest
from service.registry.objects import ObjectStore
from service.registry.records import AdapterRecord, AdapterVersion, Published, Registration
from service.registry.tensor_header import WEIGHTS_FILE

__all__ = ["AdapterRecord", "AdapterVersion", "Published", "Registration", "Registry"]

_logger = logging.getLogger(__name__)


class Registry:
    """Adapters under one data directory, for one backbone. Thread-safe; reads touch neither SQL nor files.

    Args:
        data_dir: created when missing; holds `registry.sqlite`, `objects/` and `incoming/`.
        backbone: the live backbone; adapters for another one are listed, and refused when asked for.
    """

    def __init__(
        self,
        data_dir: Path,
        backbone: BackboneSpec,
        *,
        max_prompt_length: int = 128,
        max_bottleneck_dim: int = 128,
        max_conv_kernel: int = 31,
    ) -> None:
        limits = ManifestLimits(max_prompt_length, max_bottleneck_dim, max_conv_kernel, backbone.min_window_frames)
        self._admission = Admission(backbone, limits)
        self._objects = ObjectStore(data_dir)
        self._catalogue = Catalogue(data_dir / CATALOGUE_FILE)
        self._lock = threading.Lock()  # held by writers
        self._records: dict[str, AdapterRecord] = {}  # each is replaced whole; readers take no lock
        with self._catalogue.write() as transaction:
            self._objects.sweep(transaction.referenced())
            adapters = transaction.adapters()
        for rows in adapters:
            record = self._admission.build_record(rows, None)
            if record is not None:
                self._records[rows.name] = record

    # Reading

    def resolve(self, reference: str) -> AdapterVersion:
        """The version that `name`, `name@2` or `name@canary` means, fit for the live backbone.

        Raises:
            UnknownAdapter, UnknownVersion: there is none.
            BackboneMismatch, AdapterFailed: it cannot run on this server.
        """
        name, selector = records.split_reference(reference)
        record = self._records.get(name)
        if record is None:
            raise UnknownAdapter(f"there is no adapter {name}", adapter=reference[:130])
        version = record.find(LIVE if selector is None else selector)
        self._admission.check_fit(version)
        return version

    def version(self, name: str, number: int) -> AdapterVersion:
        """One version, fit for the live backbone or not (for listing and downloads)."""
        return self.record(name).version(number)

    def records(self) -> list[AdapterRecord]:
        """All adapters, by name."""
        known = self._records.copy()  # atomic, while writers go on
        return [known[name] for name in sorted(known)]

    def record(self, name: str) -> AdapterRecord:
        """One adapter. Raises UnknownAdapter."""
        record = self._records.get(name)
        if record is None:
            raise UnknownAdapter(f"there is no adapter {name[:80]!a}", adapter=name[:80])
        return record

    def problem(self, version: AdapterVersion) -> str | None:
        """Why a version cannot run on this server, as far as that shows without reading its weights."""
        try:
            self._admission.check_fit(version)
            size = self.weights_path(version).stat().st_size
        except ServiceError as error:
            return error.detail
        except OSError as error:
            return f"{WEIGHTS_FILE} cannot be read: {error.strerror}"
        if size != version.weights_bytes:
            return f"{WEIGHTS_FILE} is damaged: it has {size:,} bytes, {version.weights_bytes:,} were uploaded"
        return None

    def config_bytes(self, version: AdapterVersion) -> bytes:
        """`adapter_config.json`, as it was uploaded."""
        return version.config

    def weights_path(self, version: AdapterVersion) -> Path:
        """Where `adapter_model.safetensors` lies."""
        return self._objects.directory(version.digest) / WEIGHTS_FILE

    def card_bytes(self, version: AdapterVersion) -> bytes | None:
        """The model card, if it came with one."""
        try:
            return (self._objects.directory(version.digest) / CARD_FILE).read_bytes()
        except OSError:
            return None

    def load(self, version: AdapterVersion) -> AdapterWeights:
        """Read a version's weights, checking them against its digest.

        Raises:
            AdapterFailed: missing, unreadable or damaged files.
            BackboneMismatch: made for another backbone.
        """
        self._admission.check_fit(version)
        try:
            files = read_bundle(self._objects.directory(version.digest))
            got = digest(version.config, files.weights)
            if got != version.digest:
                raise InvalidBundle(f"{WEIGHTS_FILE} is damaged: its digest is {got}, not {version.digest}")
            tensors = read_weights(files.weights, version.manifest, self._admission.backbone)
        except InvalidBundle as error:
            raise AdapterFailed(f"{version.reference}: {error.detail}", adapter=version.reference) from error
        return AdapterWeights.from_tensors(version.manifest.adapter_spec(), tensors)

    # Writing

    def publish(
        self, name: str, config: bytes, weights: bytes, card: bytes | None = None, *, activate: bool = True
    ) -> Published:
        """Check a bundle and make it the adapter's next version; the first one becomes `live` in any case.

        The same bytes again answer the version they have and move nothing; if that version was deleted, they
        become a new one.

        Raises:
            InvalidRequest, InvalidBundle, BackboneMismatch: it is refused.
            WrongTask: the adapter's other versions do another task.
            StorageFull: no room.
        """
        return self._publish(name, BundleFiles(config, weights, card), activate)

    def register_directory(self, path: Path) -> list[Registration]:
        """Publish every bundle in the directory's subdirectories, by name; a bad one is logged and reported.

        A digest that the adapter has had before changes nothing, also when that version was deleted.

        Raises:
            InvalidRequest: there is no such directory.
        """
        if not path.is_dir():
            raise InvalidRequest(f"{path} is not a directory of bundles")
        return [
            self._register(directory)
            for directory in sorted(path.iterdir())
            if directory.is_dir() and not directory.name.startswith(".")
        ]

    def set_alias(self, name: str, alias: str, version: int) -> AdapterRecord:
        """Point an alias to a version; `live` rolls forward or back at once.

        Raises:
            InvalidRequest, UnknownAdapter, UnknownVersion.
            BackboneMismatch, AdapterFailed: `live` cannot be what this server cannot run.
        """
        records.require_alias(alias)
        with self._lock:
            target = self.record(name).version(version)
            if alias == LIVE:
                self._admission.check_fit(target)
            with self._catalogue.write() as transaction:
                if all(row.version != version for row in transaction.adapter(name).versions):
                    raise UnknownVersion(f"adapter {name} has no version {version}", adapter=target.reference)
                transaction.set_alias(name, alias, version)
                rows = transaction.adapter(name)
            return self._refresh(rows) or self.record(name)

    def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias. Raises UnknownVersion, or VersionIsLive for `live`, which every adapter has."""
        with self._lock:
            record = self.record(name)
            if alias == LIVE:
                raise VersionIsLive(f"the alias live of {name} can be moved, not deleted", adapter=name)
            if alias not in record.aliases:
                raise UnknownVersion(f"adapter {name} has no alias {alias[:64]!a}", adapter=name)
            with self._catalogue.write() as transaction:
                transaction.delete_alias(name, alias)
                rows = transaction.adapter(name)
            self._refresh(rows)

    def delete_version(self, name: str, version: int) -> None:
        """Delete a version and the aliases that point to it. Raises UnknownVersion, VersionIsLive."""
        with self._lock:
            record = self.record(name)
            if version not in record.unreadable:
                record.version(version)
            with self._catalogue.write() as transaction:
                before = transaction.adapter(name)
                if before.aliases.get(LIVE) == version:
                    raise VersionIsLive(
                        f"version {version} of {name} is live; move live first, or delete the whole adapter",
                        adapter=f"{name}@{version}",
                    )
                transaction.delete_versions(name, [version])
                after = transaction.adapter(name)
            self._finish_deletion(before, after)

    def delete_adapter(self, name: str) -> None:
        """Delete an adapter with all versions and aliases. Raises UnknownAdapter."""
        with self._lock:
            self.record(name)
            with self._catalogue.write() as transaction:
                before = transaction.adapter(name)
                transaction.delete_versions(name, [row.version for row in before.versions])
                after = transaction.adapter(name)
            self._finish_deletion(before, after)

    # Behind the public methods

    def _publish(self, name: str, files: BundleFiles, activate: bool) -> Published:
        records.require_name(name)
        manifest = self._admission.check_config(name, files)
        self._admission.check_weights(files, manifest)
        with self._lock:
            try:
                rows, number, created = self._commit(name, files, manifest.task_type, activate)
            except StorageFull:
                self._remove_unreferenced({files.digest})
                raise
            record = self._refresh(rows)
        if record is None:
            raise UnknownVersion(f"adapter {name} has no version {number}")
        return Published(record.version(number), created, record.live == number)

    def _commit(self, name: str, files: BundleFiles, task: TaskType, activate: bool) -> tuple[AdapterRows, int, bool]:
        """Files, then rows: the adapter afterwards, the bundle's version, and whether that is new."""
        bundle_digest = files.digest
        with self._catalogue.write() as transaction:
            rows = transaction.adapter(name)
            known = next((row.version for row in rows.versions if row.digest == bundle_digest), None)
            if known is not None:
                if not self._objects.holds(files):
                    _logger.warning("%s@%d was damaged on disk; its upload repairs it", name, known)
                    self._objects.put(files)
                return rows, known, False
            self._check_task(name, task)
            self._objects.put(files)
            number = transaction.add_version(name, bundle_digest, files.config, len(files.weights))
            if activate or LIVE not in rows.aliases:
                transaction.set_alias(name, LIVE, number)
            return transaction.adapter(name), number, True

    def _check_task(self, name: str, task: TaskType) -> None:
        record = self._records.get(name)
        if record is not None and record.task_type not in (None, task):
            raise WrongTask(
                f"adapter {name} does {record.task_type}; a bundle for {task} needs another name", adapter=name
            )

    def _register(self, directory: Path) -> Registration:
        try:
            files = read_bundle(directory)
            name = parse_manifest(files.config).name
            with self._lock, self._catalogue.write() as transaction:
                seen = transaction.was_seen(name, files.digest)
                there = any(row.digest == files.digest for row in transaction.adapter(name).versions)
            if seen and not there:
                return Registration(directory.name)
            return Registration(directory.name, published=self._publish(name, files, activate=True))
        except ServiceError as error:
            _logger.error("bundle %s is not registered: %s", directory, error.detail)
            return Registration(directory.name, problem=error.detail)

    def _refresh(self, rows: AdapterRows) -> AdapterRecord | None:
        """Take over what was committed; readers see the adapter as it was before or after, never between."""
        record = self._admission.build_record(rows, self._records.get(rows.name))
        if record is None:
            self._records.pop(rows.name, None)
        else:
            self._records[rows.name] = record
        return record

    def _finish_deletion(self, before: AdapterRows, after: AdapterRows) -> None:
        """Remove files that nothing refers to any more; what a crash leaves here goes at the next start."""
        self._refresh(after)
        kept = {row.version for row in after.versions}
        self._remove_unreferenced({row.digest for row in before.versions if row.version not in kept})

    def _remove_unreferenced(self, digests: set[str]) -> None:
        try:
            with self._catalogue.write() as transaction:
                for unreferenced in sorted(one for one in digests if not transaction.is_referenced(one)):
                    self._objects.remove(unreferenced)
        except ServiceError as error:  # what was asked for is done or refused already
            _logger.warning("files of deleted versions are left for the next start: %s", error.detail)
