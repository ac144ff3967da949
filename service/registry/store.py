"""The registry: named, versioned adapters, durable on disk and known in memory. Knows no device and no HTTP.

What a method returned is there after a crash. The order of an upload is: check, write the files durably,
commit the catalogue's row, publish in memory; of a deletion, the same backwards.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from service.errors import (
    InvalidRequest,
    ServiceError,
    UnknownVersion,
    VersionIsLive,
    WrongTask,
)
from service.model.adapter import AdapterWeights
from service.model.spec import BackboneSpec, TaskType
from service.registry import answers, records
from service.registry.admission import Admission
from service.registry.answers import Answer, Attempt
from service.registry.audit import ANONYMOUS
from service.registry.bundle import read_bundle
from service.registry.catalogue import LIVE, Transaction, catalogue_of
from service.registry.follower import Follower
from service.registry.inspection import inspect
from service.registry.manifest import Manifest, ManifestLimits, parse_manifest
from service.registry.objects import ObjectStore
from service.registry.records import AdapterRecord, AdapterVersion, Addition, Published, Registration
from service.registry.tensor_header import WEIGHTS_FILE
from service.registry.upload import Upload
from service.registry.view import RegistryView

__all__ = ["AdapterRecord", "AdapterVersion", "Addition", "Published", "Quota", "Registration", "Registry"]

SERVER = "server"  # the actor of bundles that are registered at start
_CHECKS_AT_ONCE = 2  # uploads whose weights are in memory

_logger = logging.getLogger(__name__)

Smoke = Callable[[Manifest, AdapterWeights], None]
Quota = Callable[[Transaction, Addition], None]


class Registry(RegistryView):
    """Adapters under one data directory, for one backbone. Thread-safe; several processes may share one.

    Args:
        data_dir: created when missing; holds `objects/`, `incoming/` and, without a URL, `registry.sqlite`.
        backbone: the live backbone; adapters for another one are listed, and refused when asked for.
        database_url: of the catalogue; SQLite in the data directory without it.
        smoke: runs an upload's weights once; raises InvalidBundle where its outputs are no good.
        grace_seconds: how long files of deleted versions stay, for requests that were admitted before.
        verify: read every file at start, not only its size.
    """

    def __init__(
        self,
        data_dir: Path,
        backbone: BackboneSpec,
        *,
        max_prompt_length: int = 128,
        max_bottleneck_dim: int = 128,
        max_conv_kernel: int = 31,
        database_url: str = "",
        smoke: Smoke | None = None,
        grace_seconds: float = 0.0,
        verify: bool = False,
    ) -> None:
        limits = ManifestLimits(max_prompt_length, max_bottleneck_dim, max_conv_kernel, backbone.min_window_frames)
        objects = ObjectStore(data_dir)
        super().__init__(catalogue_of(data_dir, database_url), objects, Admission(backbone, limits))
        self._smoke = smoke
        self._grace = grace_seconds
        self._checking = threading.Semaphore(_CHECKS_AT_ONCE)
        with self._lock, self._catalogue.write() as transaction:
            objects.belong_to(transaction.identity())
            adapters = transaction.adapters()
            deleted = transaction.deleted_since(datetime.now(UTC) - timedelta(seconds=grace_seconds))
            objects.sweep(transaction.referenced() | deleted)
            self._revision = transaction.revision()
        # Digest -> when its files go, on the clock of time.monotonic.
        self._retired = dict.fromkeys(deleted, time.monotonic() + grace_seconds)
        report = inspect(objects, (row for rows in adapters for row in rows.versions), thorough=verify)
        self._damage = dict(report.damaged)
        self._take_over(adapters)
        self._follower = Follower(self._catch_up)

    # Other processes

    def follow(self, seconds: float, on_reachable: Callable[[bool], None] = lambda reachable: None) -> None:
        """Look for what other processes changed every so many seconds, in a thread, until `close`.

        Args:
            on_reachable: called with whether the database answered, each time.
        """
        self._follower.start(seconds, on_reachable)

    @property
    def degraded(self) -> str | None:
        """Why only what is known can be served, while the database cannot be reached."""
        return self._follower.fault

    def close(self) -> None:
        """Stop following and give back what is held."""
        self._follower.stop()
        self._objects.quarantine.close()

    def _catch_up(self) -> None:
        """Take over what others committed, and remove what has been deleted for long enough."""
        with self._catalogue.read() as transaction:
            revision = transaction.revision()
        if revision != self._revision:
            with self._lock:  # what this process commits meanwhile must not be overwritten by what was before
                with self._catalogue.read() as transaction:
                    revision, changed = transaction.revision(), transaction.changed_since(self._revision)
                self._take_over(changed)
                self._revision = revision
        self._collect()

    # Uploads

    def receive(self, name: str) -> Upload:
        """A bundle that is about to arrive, for `publish_upload`; to be discarded in the end in any case.

        Raises:
            InvalidRequest: the name cannot be one. StorageFull, Internal: there is no place for it.
        """
        records.require_name(name)
        return Upload(name, self._admission, self._objects.quarantine.stage())

    def publish_upload(
        self,
        upload: Upload,
        *,
        activate: bool = True,
        actor: str = ANONYMOUS,
        key: str | None = None,
        domain: str | None = None,
        quota: Quota | None = None,
    ) -> Published:
        """Check a bundle and make it the adapter's next version; the first one becomes `live` in any case.

        The same bytes again answer the version they have and move nothing; if that version was deleted, they
        become a new one. The same `key` of the same actor again answers what it was answered.

        Args:
            domain: whom a new version counts to; nobody without one.
            quota: called within the publishing transaction where a version would be added, before it is; what it
                raises, a ServiceError, ends the upload with nothing published.

        Raises:
            InvalidRequest, InvalidBundle, BackboneMismatch: it is refused.
            WrongTask: the adapter's other versions do another task.
            StorageFull: no room. NotReady, RegistryUnavailable: the catalogue cannot be written now.
        """
        manifest = upload.finish()
        digest = upload.staging.digest
        attempt = None
        if key is not None:
            attempt = Attempt.of(actor, key, upload.name, activate, upload.staging.digest_with_card)
            with self._catalogue.read() as transaction:
                if (known := self._recall(transaction, attempt)) is not None:
                    return known
        self._check(upload, manifest, digest)
        try:
            with self._writing(upload.name, actor) as transaction:
                if attempt is not None and (known := self._recall(transaction, attempt)) is not None:
                    return known
                answer = self._add(transaction, upload, manifest.task_type, activate, domain, quota)
                if attempt is not None:
                    answers.remember(transaction.connection, attempt, answer)
        except ServiceError:
            self._retire({digest}, 0.0)  # its files may lie there without a row that refers to them
            raise
        return Published(self.version(answer.name, answer.version), answer.created, answer.live)

    def publish(
        self,
        name: str,
        config: bytes,
        weights: bytes,
        card: bytes | None = None,
        *,
        activate: bool = True,
        actor: str = ANONYMOUS,
        domain: str | None = None,
        quota: Quota | None = None,
    ) -> Published:
        """As `publish_upload`, of bytes."""
        upload = self.receive(name)
        try:
            for part, content in (("config", config), ("weights", weights), ("card", card)):
                if content is not None:
                    upload.begin(part)
                    upload.write(part, content)
            return self.publish_upload(upload, activate=activate, actor=actor, domain=domain, quota=quota)
        finally:
            upload.discard()

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

    # Aliases and deletions

    def set_alias(self, name: str, alias: str, version: int, actor: str = ANONYMOUS) -> AdapterRecord:
        """Point an alias to a version; `live` rolls forward or back at once.

        Raises:
            InvalidRequest, UnknownAdapter, UnknownVersion.
            BackboneMismatch, AdapterFailed: `live` cannot be what this server cannot run.
        """
        records.require_alias(alias)
        target = self.record(name).version(version)
        if alias == LIVE:
            self._admission.check_fit(target)
        with self._writing(name, actor) as transaction:
            if all(row.version != version for row in transaction.adapter(name).versions):
                raise UnknownVersion(f"adapter {name} has no version {version}", adapter=target.reference)
            transaction.set_alias(name, alias, version)
        return self.record(name)

    def delete_alias(self, name: str, alias: str, actor: str = ANONYMOUS) -> None:
        """Remove an alias. Raises UnknownVersion, or VersionIsLive for `live`, which every adapter has."""
        self.record(name)
        if alias == LIVE:
            raise VersionIsLive(f"the alias live of {name} can be moved, not deleted", adapter=name)
        with self._writing(name, actor) as transaction:
            if alias not in transaction.adapter(name).aliases:
                raise UnknownVersion(f"adapter {name} has no alias {alias[:64]!a}", adapter=name)
            transaction.delete_alias(name, alias)

    def delete_version(self, name: str, version: int, actor: str = ANONYMOUS) -> None:
        """Delete a version and the aliases that point to it. Raises UnknownVersion, VersionIsLive."""
        record = self.record(name)
        if version not in record.unreadable:
            record.version(version)
        with self._writing(name, actor) as transaction:
            before = transaction.adapter(name)
            if before.aliases.get(LIVE) == version:
                raise VersionIsLive(
                    f"version {version} of {name} is live; move live first, or delete the whole adapter",
                    adapter=f"{name}@{version}",
                )
            transaction.delete_version(name, version)
        self._retire({row.digest for row in before.versions if row.version == version}, self._grace)

    def delete_adapter(self, name: str, actor: str = ANONYMOUS) -> None:
        """Delete an adapter with all versions and aliases. Raises UnknownAdapter."""
        self.record(name)
        with self._writing(name, actor) as transaction:
            before = transaction.adapter(name)
            transaction.delete_adapter(name)
        self._retire({row.digest for row in before.versions}, self._grace)

    # Behind the public methods

    @contextmanager
    def _writing(self, name: str, actor: str) -> Iterator[Transaction]:
        """The write transaction for a change of one adapter, which is shown as it is afterwards."""
        with self._lock:
            with self._catalogue.write(actor) as transaction:
                yield transaction
                rows = transaction.adapter(name)
            self._take_over([rows])

    def _check(self, upload: Upload, manifest: Manifest, digest: str) -> None:
        """Raise InvalidBundle unless the weights are as the manifest says and the backbone runs them well."""
        record = self._records.get(upload.name)
        with self._checking:
            weights = self._admission.check_weights(upload.weights_path, manifest)
            is_new = record is None or all(version.digest != digest for version in record.versions)
            if self._smoke is not None and is_new:
                self._smoke(manifest, weights)

    def _add(
        self,
        transaction: Transaction,
        upload: Upload,
        task: TaskType,
        activate: bool,
        domain: str | None,
        quota: Quota | None,
    ) -> Answer:
        """Files, then rows: the bundle's version, and whether that is new."""
        name, digest = upload.name, upload.staging.digest
        rows = transaction.adapter(name)
        live = rows.aliases.get(LIVE)
        known = next((row.version for row in rows.versions if row.digest == digest), None)
        if known is not None:
            if not self._objects.holds(digest):
                _logger.warning("%s@%d was damaged on disk; its upload repairs it", name, known)
                self._objects.publish(upload.staging)
                transaction.repaired(name, known, digest)
                self._damage.pop(digest, None)
            return Answer(name, known, False, live == known)
        self._check_task(name, task)
        size = sum(upload.staging.sizes.values())
        if quota is not None:
            quota(transaction, Addition(name, digest, size))
        self._objects.publish(upload.staging)
        self._damage.pop(digest, None)
        weights = upload.staging.sizes[WEIGHTS_FILE]
        number = transaction.add_version(name, digest, upload.config, weights, size, domain)
        if activate or live is None:
            transaction.set_alias(name, LIVE, number)
        return Answer(name, number, True, activate or live is None)

    def _check_task(self, name: str, task: TaskType) -> None:
        record = self._records.get(name)
        if record is not None and record.task_type not in (None, task):
            raise WrongTask(
                f"adapter {name} does {record.task_type}; a bundle for {task} needs another name", adapter=name
            )

    def _recall(self, transaction: Transaction, attempt: Attempt) -> Published | None:
        """What an attempt was answered before, also when that version was deleted since."""
        answer = answers.recall(transaction.connection, attempt)
        if answer is None:
            return None
        row = transaction.version(answer.name, answer.version)
        if row is None:
            return None
        return Published(self._admission.build_version(row), answer.created, answer.live, replayed=True)

    def _register(self, directory: Path) -> Registration:
        try:
            files = read_bundle(directory)
            name = parse_manifest(files.config).name
            with self._catalogue.read() as transaction:
                seen = transaction.was_seen(name, files.digest)
                there = any(row.digest == files.digest for row in transaction.adapter(name).versions)
            if seen and not there:
                return Registration(directory.name)
            published = self.publish(name, files.config, files.weights, files.card, actor=SERVER)
            return Registration(directory.name, published=published)
        except ServiceError as error:
            _logger.error("bundle %s is not registered: %s", directory, error.detail)
            return Registration(directory.name, problem=error.detail)

    def _retire(self, digests: Iterable[str], seconds: float) -> None:
        """Let files go in so many seconds, unless a version refers to them then."""
        moment = time.monotonic() + seconds
        with self._lock:
            self._retired |= {digest: max(moment, self._retired.get(digest, moment)) for digest in digests}
        if not seconds:
            self._collect()

    def _collect(self) -> None:
        """Remove what was retired for long enough; what a crash leaves here goes at the next start."""
        now = time.monotonic()
        with self._lock:
            due = sorted(digest for digest, moment in self._retired.items() if moment <= now)
        if not due:
            return
        try:
            with self._lock, self._catalogue.write() as transaction:
                for digest in due:
                    if not transaction.is_referenced(digest):
                        self._objects.remove(digest)
                    self._retired.pop(digest, None)
        except ServiceError as error:  # what was asked for is done or refused already; the follower tries again
            _logger.warning("files of deleted versions are still there: %s", error.detail)
