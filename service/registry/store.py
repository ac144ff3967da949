"""The registry: named, versioned adapters, durable on disk and known in memory.

What a method returned is there after a crash.
"""

import logging
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from service import attempts
from service.attempts import Attempt
from service.cards import read_card
from service.deadline import Deadline
from service.errors import InvalidRequest, NotReady, ServiceError, WrongTask
from service.model.adapter import AdapterWeights
from service.model.parts.every import LIMITS
from service.model.spec import BackboneSpec
from service.notices import Notices, Topic
from service.registry.adapters import AdapterRecord, AdapterVersion, Published, require_name
from service.registry.audit import ANONYMOUS
from service.registry.bucket import open_objects
from service.registry.bundle import CARD_FILE, digest_at, read_bundle, wrong_size
from service.registry.catalogue import LIVE, Transaction, catalogue_of
from service.registry.changes import Change, RegistryChanges
from service.registry.fit import Fit
from service.registry.manifest import Manifest, ManifestLimits, parse_manifest
from service.registry.tables import answers
from service.registry.upload import Convert, Upload
from service.routine import Routine

__all__ = ["AdapterRecord", "AdapterVersion", "Published", "Quota", "Registry"]

FOLLOW_SECONDS = 0.25  # between looks at what other processes changed
CHECK_SECONDS = 5.0  # between looks whether the files of adapters can be reached
SERVER = "server"  # the actor of bundles that are registered at start
_CHECKS_AT_ONCE = 2  # uploads whose weights are in memory

_logger = logging.getLogger(__name__)

Smoke = Callable[[Manifest, AdapterWeights], None]
Quota = Callable[[Transaction, int], None]  # bytes of all files of the version that would be added


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of an upload."""

    name: str
    version: int
    created: bool
    live: bool


class Registry(RegistryChanges):
    """Adapters under one data directory, for one backbone. Thread-safe; several processes may share one.

    Args:
        data_dir: created when missing; holds `objects/`, `incoming/` and, without a URL, `registry.sqlite`.
        backbone: the live backbone; adapters for another one are listed, and refused when asked for.
        database_url: of the catalogue; SQLite in the data directory without it.
        objects_url: where the files lie, see `open_objects`; those in use lie here too, so many bytes of them.
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
        objects_url: str = "",
        objects_cache_bytes: int = 2**32,
        smoke: Smoke | None = None,
        grace_seconds: float = 0.0,
        verify: bool = False,
    ) -> None:
        sizes = {**LIMITS, "prompt_length": max_prompt_length, "bottleneck_dim": max_bottleneck_dim}
        limits = ManifestLimits(sizes, backbone.min_window_frames)
        objects = open_objects(data_dir, objects_url, objects_cache_bytes)
        catalogue = catalogue_of(data_dir, database_url)
        objects.belong_to(catalogue.identity)
        super().__init__(catalogue, objects, Fit(backbone, limits), grace_seconds)
        self._smoke = smoke
        self._checking = threading.Semaphore(_CHECKS_AT_ONCE)
        with self._catalogue.read() as transaction:
            adapters = transaction.adapters()
            deleted = transaction.deleted_since(datetime.now(UTC) - timedelta(seconds=grace_seconds))
            self._revision = transaction.revision()
        objects.local.quarantine.sweep()
        there, known = objects.sizes(), [row for rows in adapters for row in rows.versions]
        self._retire(deleted, grace_seconds)
        leftovers = (there.keys() | objects.local.sizes().keys()) - {row.digest for row in known} - deleted
        self._retire(leftovers, 0.0)
        objects.local.keep_reserve()
        for row in known:
            if fault := objects.verify(row, thorough=True) if verify else wrong_size(row, there.get(row.digest)):
                _logger.error("%s@%d cannot be served: %s", row.name, row.version, fault)
                self._damage[row.digest] = fault
            elif objects is objects.local:
                objects.local.restore_config(row, thorough=verify)
        self._take_over(adapters)
        self.on_gone(self._retire_gone)
        self._following = Routine("following the catalogue", self._catch_up)
        self._watching = Routine("reaching the files of adapters", objects.check)

    # Other processes

    def follow(
        self,
        seconds: float = FOLLOW_SECONDS,
        on_reachable: Callable[[bool], None] = lambda reachable: None,
        notices: Notices | None = None,
    ) -> None:
        """Look for what other processes changed, in a thread, until `close`.

        Args:
            seconds: between looks where there are no `notices`.
            on_reachable: called with whether the database answered, each time.
        """
        wake = self._following.wake
        self._following.start(notices.pace(Topic.ADAPTERS, wake, seconds) if notices else seconds, on_reachable)
        self._watching.start(CHECK_SECONDS)

    def catch_up(self) -> None:
        """Look now. Raises nothing."""
        self._following.once()

    @property
    def degraded(self) -> str | None:
        """Why only what is known can be served, while the database or the files cannot be reached."""
        faults = [one.fault for one in (self._following, self._watching) if one.fault is not None]
        return "; ".join(faults) or None

    def close(self) -> None:
        """Stop following and give back what is held."""
        self._following.stop()
        self._watching.stop(seconds=1.0)
        self._objects.local.quarantine.close()
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

    def receive(self, name: str, convert: Convert | None = None) -> Upload:
        """A bundle that is about to arrive, for `publish_upload`; to be discarded in the end in any case.

        Raises:
            InvalidRequest: the name cannot be one.
        """
        require_name(name)
        return Upload(name, self._objects.local, self._fit, convert)

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
        with upload.being_published():
            with until.hold(self._checking) if upload.is_converted else nullcontext():
                manifest, digest = upload.finish(), upload.digest
            until.check()
            attempt = Attempt.of(key or None, "\n".join((name, str(activate), upload.digest_with_card)).encode())
            record = self._records.get(name)
            known = next((one for one in record.versions if one.digest == digest), None) if record else None
            is_damaged = known is not None and self._objects.verify(known, thorough=True) is not None
            if known is None:
                self._check(upload, manifest, until)
            with self._sending(upload, known is None or is_damaged), self._changing(name, actor, until) as change:
                if attempt is not None and (told := self._recall(change.transaction, actor, attempt)) is not None:
                    return told
                answer = self._put(change, upload, manifest, activate, domain, quota, is_damaged)
                if known is not None and answer.created:
                    raise NotReady(f"{name} was changed meanwhile; try again", retry_after=0.0)
                if attempt is not None:
                    connection, now = change.transaction.connection, datetime.now(UTC)
                    attempts.forget(connection, answers, now)
                    attempts.remember(connection, answers, {"actor": actor}, attempt, now, **asdict(answer))
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

    def register_directory(self, path: Path) -> dict[str, str | None]:
        """Publish every bundle in the directory's subdirectories, by name; a bad one is logged.

        A digest that was seen before changes nothing, unless its files are damaged; that of a deleted version never.

        Returns:
            Subdirectory -> what is wrong with its bundle, if anything.

        Raises:
            InvalidRequest: there is no such directory.
        """
        if not path.is_dir():
            raise InvalidRequest(f"{path} is not a directory of bundles")
        found = [one for one in sorted(path.iterdir()) if one.is_dir() and not one.name.startswith(".")]
        digests = {directory: digest_at(directory) or "" for directory in found}
        with self._catalogue.read() as transaction:
            seen = transaction.seen(list(digests.values()))
        problems: dict[str, str | None] = {directory.name: None for directory in found}
        for directory, digest in digests.items():
            if digest in seen and not (seen[digest] and digest in self._damage):
                continue
            try:
                files = read_bundle(directory)
                name, card = parse_manifest(files.config).name, files.card and read_card(directory / CARD_FILE)
                self.publish(name, files.config, files.weights, card, actor=SERVER)
            except ServiceError as error:
                _logger.error("bundle %s is not registered: %s", directory, error.detail)
                problems[directory.name] = error.detail
        return problems

    # Behind the public methods

    def _check(self, upload: Upload, manifest: Manifest, deadline: Deadline) -> None:
        """Raise InvalidBundle unless the weights are as the manifest says and the backbone runs them."""
        with deadline.hold(self._checking):
            weights = upload.read_weights(manifest)
            deadline.check()
            if self._smoke is not None:
                self._smoke(manifest, weights)

    @contextmanager
    def _sending(self, upload: Upload, is_needed: bool) -> Iterator[None]:
        """Its files on their way; where they are not published after all they go, unless they have a row."""
        try:
            if is_needed:
                self._objects.send(upload.digest, upload.directory)
            yield
        except BaseException:
            self._retired.setdefault(upload.digest, 0.0)
            raise
        finally:
            self._objects.settle(upload.digest, upload.directory)

    def _put(
        self,
        change: Change,
        upload: Upload,
        manifest: Manifest,
        activate: bool,
        domain: str | None,
        quota: Quota | None,
        is_damaged: bool,
    ) -> _Outcome:
        """Files, unless they are there and not damaged, then rows: the bundle's version, and whether that is new."""
        name, digest, transaction = change.name, upload.digest, change.transaction
        live = change.before.aliases.get(LIVE)
        known = next((row for row in change.before.versions if row.digest == digest), None)
        if known is not None:
            if is_damaged:
                _logger.warning("%s@%d was damaged on disk; its upload repairs it", name, known.version)
                self._publish_files(upload)
                transaction.repaired(name, known.version, digest)
            return _Outcome(name, known.version, False, live == known.version)
        task = change.record.task_type if change.record else None
        if task not in (None, manifest.task_type):
            raise WrongTask(
                f"adapter {name} does {task}; a bundle for {manifest.task_type} needs another name", adapter=name
            )
        size = sum(upload.sizes.values())
        if quota is not None:
            quota(transaction, size)
        self._publish_files(upload)
        number = transaction.add_version(name, digest, upload.config, upload.sizes["weights"], size, domain)
        if activate or live is None:
            transaction.set_alias(name, LIVE, number)
        return _Outcome(name, number, True, activate or live is None)

    def _publish_files(self, upload: Upload) -> None:
        self._objects.local.publish(upload.digest, upload.directory)
        self._damage.pop(upload.digest, None)

    def _recall(self, transaction: Transaction, actor: str, attempt: Attempt) -> Published | None:
        """What an attempt was answered before, also when that version was deleted since."""
        other = "another upload, which became {row.name}@{row.version}"
        now, caller = datetime.now(UTC), {"actor": actor}
        answer = attempts.recall(transaction.connection, answers, caller, attempt, now, other)
        row = None if answer is None else transaction.version(answer.name, answer.version)
        if answer is None or row is None:
            return None
        return Published(self._fit.build_version(row), answer.created, answer.live, replayed=True)
