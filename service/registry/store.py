"""The registry: named, versioned adapters, durable on disk and known in memory.

What a method returned is there after a crash.
"""

import logging
import math
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from service.deadline import Deadline
from service.errors import (
    InvalidRequest,
    NotReady,
    ServiceError,
    WrongTask,
)
from service.model.adapter import AdapterWeights
from service.model.parts.every import LIMITS
from service.model.spec import BackboneSpec
from service.registry import attempts
from service.registry.adapters import AdapterRecord, AdapterVersion, Addition, Published, Registration, require_name
from service.registry.attempts import Attempt, Outcome
from service.registry.audit import ANONYMOUS
from service.registry.bundle import digest_at, read_bundle
from service.registry.catalogue import LIVE, Transaction, catalogue_of
from service.registry.changes import Change, RegistryChanges
from service.registry.fit import Fit
from service.registry.follower import Follower
from service.registry.manifest import Manifest, ManifestLimits, parse_manifest
from service.registry.objects import ObjectStore
from service.registry.tensor_header import WEIGHTS_FILE
from service.registry.upload import Upload

__all__ = ["AdapterRecord", "AdapterVersion", "Addition", "Published", "Quota", "Registration", "Registry"]

SERVER = "server"  # the actor of bundles that are registered at start
_CHECKS_AT_ONCE = 2  # uploads whose weights are in memory

_logger = logging.getLogger(__name__)

Smoke = Callable[[Manifest, AdapterWeights], None]
Quota = Callable[[Transaction, Addition], None]


class Registry(RegistryChanges):
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
        database_url: str = "",
        smoke: Smoke | None = None,
        grace_seconds: float = 0.0,
        verify: bool = False,
    ) -> None:
        sizes = {**LIMITS, "prompt_length": max_prompt_length, "bottleneck_dim": max_bottleneck_dim}
        limits = ManifestLimits(sizes, backbone.min_window_frames)
        objects, catalogue = ObjectStore(data_dir), catalogue_of(data_dir, database_url)
        objects.belong_to(catalogue.identity)
        super().__init__(catalogue, objects, Fit(backbone, limits), grace_seconds)
        self._smoke = smoke
        self._checking = threading.Semaphore(_CHECKS_AT_ONCE)
        with self._catalogue.read() as transaction:
            adapters = transaction.adapters()
            deleted = transaction.deleted_since(datetime.now(UTC) - timedelta(seconds=grace_seconds))
            self._revision = transaction.revision()
        self._objects.quarantine.sweep()
        orphans = list(objects.orphans({row.digest for rows in adapters for row in rows.versions} | deleted))
        self._retire(deleted, grace_seconds)
        self._retire(orphans, 0.0)
        self._objects.keep_reserve()
        report = objects.inspect((row for rows in adapters for row in rows.versions), thorough=verify)
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
        self._catalogue.close()

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
            InvalidRequest: the name cannot be one.
        """
        require_name(name)
        return Upload(name, self._fit, self._objects.quarantine.stage())

    def publish_upload(
        self,
        upload: Upload,
        *,
        activate: bool = True,
        actor: str = ANONYMOUS,
        key: str | None = None,
        domain: str | None = None,
        quota: Quota | None = None,
        deadline: Deadline | None = None,
    ) -> Published:
        """Check a bundle and make it the adapter's next version; the first one becomes `live` in any case.

        The same bytes again answer the version they have and move nothing; if that version was deleted, they
        become a new one. The same `key` of the same actor again answers what it was answered.

        Args:
            domain: whom a new version counts to; nobody without one.
            quota: called within the publishing transaction where a version would be added, before it is; what it
                raises, a ServiceError, ends the upload with nothing published.
            deadline: nothing is published after it. From now on the upload is this call's, whoever discards it.

        Raises:
            InvalidRequest, InvalidBundle, BackboneMismatch: it is refused.
            WrongTask: the adapter's other versions do another task.
            StorageFull: no room. NotReady, RegistryUnavailable: the catalogue cannot be written now.
            DeadlineExceeded: nothing was published.
        """
        name, until = upload.name, deadline or Deadline(math.inf)
        with upload.staging.being_published():
            manifest, digest = upload.finish(), upload.staging.digest
            attempt = Attempt.of(actor, key, name, activate, upload.staging.digest_with_card) if key else None
            with self._catalogue.read() as transaction:
                if attempt is not None and (known := self._recall(transaction, attempt)) is not None:
                    return known
                is_known = transaction.seen([digest]).get(digest, (name, None))[1] is not None
            self._check(upload, manifest, until, run=not is_known)
            with self._changing(name, actor, until) as change:
                if attempt is not None and (known := self._recall(change.transaction, attempt)) is not None:
                    return known
                answer = self._put(change, upload, manifest, activate, domain, quota)
                if is_known and answer.created:
                    raise NotReady(f"{name} was changed meanwhile; try again", retry_after=0.0)
                if attempt is not None:
                    attempts.remember(change.transaction.connection, attempt, answer)
        return Published(change.adapter.version(answer.version), answer.created, answer.live)

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
        found = [one for one in sorted(path.iterdir()) if one.is_dir() and not one.name.startswith(".")]
        digests = {directory: digest_at(directory) for directory in found}
        with self._catalogue.read() as transaction:
            seen = transaction.seen([digest for digest in digests.values() if digest is not None])
            records = {
                name: self._fit.build_record(transaction.adapter(name), self._records.get(name))
                for name, number in seen.values()
                if number is not None
            }
        return [self._register(directory, seen.get(digest or ""), records) for directory, digest in digests.items()]

    # Behind the public methods

    def _check(self, upload: Upload, manifest: Manifest, deadline: Deadline, *, run: bool) -> None:
        """Raise InvalidBundle unless the weights are as the manifest says and, if asked, the backbone runs them."""
        with deadline.hold(self._checking):
            weights = upload.read_weights(manifest)
            deadline.check()
            if self._smoke is not None and run:
                self._smoke(manifest, weights)

    def _put(
        self,
        change: Change,
        upload: Upload,
        manifest: Manifest,
        activate: bool,
        domain: str | None,
        quota: Quota | None,
    ) -> Outcome:
        """Files, then rows: the bundle's version, and whether that is new."""
        name, digest, transaction = change.name, upload.staging.digest, change.transaction
        live = change.before.aliases.get(LIVE)
        known = next((row for row in change.before.versions if row.digest == digest), None)
        if known is not None:
            if self._objects.verify(known, thorough=True) is not None:
                _logger.warning("%s@%d was damaged on disk; its upload repairs it", name, known.version)
                self._publish_files(change, upload)
                transaction.repaired(name, known.version, digest)
            return Outcome(name, known.version, False, live == known.version)
        task = change.record.task_type if change.record else None
        if task not in (None, manifest.task_type):
            raise WrongTask(
                f"adapter {name} does {task}; a bundle for {manifest.task_type} needs another name", adapter=name
            )
        size, weights = sum(upload.staging.sizes.values()), upload.staging.sizes[WEIGHTS_FILE]
        if quota is not None:
            quota(transaction, Addition(name, digest, size))
        self._publish_files(change, upload)
        number = transaction.add_version(name, digest, upload.config, weights, size, domain)
        if activate or live is None:
            transaction.set_alias(name, LIVE, number)
        return Outcome(name, number, True, activate or live is None)

    def _publish_files(self, change: "Change", upload: Upload) -> None:
        change.published.append(upload.staging.digest)
        self._objects.publish(upload.staging)
        self._damage.pop(upload.staging.digest, None)

    def _recall(self, transaction: Transaction, attempt: Attempt) -> Published | None:
        """What an attempt was answered before, also when that version was deleted since."""
        answer = attempts.recall(transaction.connection, attempt)
        if answer is None:
            return None
        row = transaction.version(answer.name, answer.version)
        if row is None:
            return None
        return Published(self._fit.build_version(row), answer.created, answer.live, replayed=True)

    def _register(
        self, directory: Path, seen: tuple[str, int | None] | None, records: Mapping[str, AdapterRecord | None]
    ) -> Registration:
        """Publish a bundle, unless it was seen before, as the version of that number or a deleted one."""
        try:
            if seen is not None:
                name, number = seen
                record = records.get(name)
                if number is None or record is None:
                    return Registration(directory.name)
                version = record.version(number)
                if version.digest not in self._damage:
                    return Registration(directory.name, Published(version, False, record.live == number))
            files = read_bundle(directory)
            name = parse_manifest(files.config).name
            published = self.publish(name, files.config, files.weights, files.card, actor=SERVER)
            return Registration(directory.name, published=published)
        except ServiceError as error:
            _logger.error("bundle %s is not registered: %s", directory, error.detail)
            return Registration(directory.name, problem=error.detail)
