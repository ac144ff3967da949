"""Changes of adapters: each judged by the rows of its own transaction, committed by its deadline or never.

The order of an upload is: files, rows, memory; of a deletion, the same backwards.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from service.deadline import Deadline
from service.errors import ServiceError, StorageFull, UnknownAdapter, UnknownVersion, VersionIsLive
from service.registry.adapters import AdapterRecord, require_alias
from service.registry.audit import ANONYMOUS
from service.registry.catalogue import LIVE, AdapterRows, Catalogue, Transaction
from service.registry.fit import Fit
from service.registry.objects import ObjectStore
from service.registry.view import RegistryView

COLLECT_SECONDS = 1.0  # at most, for other writers to let files be removed

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Change:
    """One change of one adapter.

    Args:
        before: its rows, as the transaction found them.
        record: the adapter by those rows; once committed, as it was left. None where there is none.
        published: digests of files that were put in place.
    """

    name: str
    transaction: Transaction
    before: AdapterRows
    record: AdapterRecord | None
    published: list[str]

    @property
    def adapter(self) -> AdapterRecord:
        """Raises UnknownAdapter."""
        if self.record is None:
            raise UnknownAdapter(f"there is no adapter {self.name[:80]!a}", adapter=self.name[:80])
        return self.record


class RegistryChanges(RegistryView):
    """Moves and deletions of one registry. Thread-safe.

    Args:
        grace_seconds: how long files of deleted versions stay, for requests that were admitted before.
    """

    def __init__(self, catalogue: Catalogue, objects: ObjectStore, fit: Fit, grace_seconds: float) -> None:
        super().__init__(catalogue, objects, fit)
        self._grace = grace_seconds
        self._retired: dict[str, float] = {}  # digest -> when its files go, on the clock of time.monotonic

    def set_alias(
        self, name: str, alias: str, version: int, actor: str = ANONYMOUS, deadline: Deadline | None = None
    ) -> AdapterRecord:
        """Point an alias to a version; `live` rolls forward or back at once.

        Returns:
            The adapter as this change left it.

        Raises:
            InvalidRequest, UnknownAdapter, UnknownVersion.
            BackboneMismatch, AdapterFailed: `live` cannot be what this server cannot run.
            DeadlineExceeded: nothing was changed; also of the other changes.
        """
        require_alias(alias)
        with self._changing(name, actor, deadline) as change:
            target = change.adapter.version(version)
            if alias == LIVE:
                self._fit.check_fit(target)
            change.transaction.set_alias(name, alias, version)
        return change.adapter

    def delete_alias(self, name: str, alias: str, actor: str = ANONYMOUS, deadline: Deadline | None = None) -> None:
        """Remove an alias. Raises UnknownVersion, or VersionIsLive for `live`, which every adapter has."""

        def delete(change: Change) -> None:
            if alias not in change.adapter.aliases:
                raise UnknownVersion(f"adapter {name} has no alias {alias[:64]!a}", adapter=name)
            if alias == LIVE:
                raise VersionIsLive(f"the alias live of {name} can be moved, not deleted", adapter=name)
            change.transaction.delete_alias(name, alias)

        self._delete(name, actor, deadline, delete)

    def delete_version(self, name: str, version: int, actor: str = ANONYMOUS, deadline: Deadline | None = None) -> None:
        """Delete a version and the aliases that point to it. Raises UnknownVersion, VersionIsLive."""

        def delete(change: Change) -> None:
            adapter = change.adapter
            if version not in adapter.unreadable:
                adapter.version(version)
            if adapter.live == version:
                raise VersionIsLive(
                    f"version {version} of {name} is live; move live first, or delete the whole adapter",
                    adapter=f"{name}@{version}",
                )
            change.transaction.delete_version(name, version)

        self._delete(name, actor, deadline, delete)

    def delete_adapter(self, name: str, actor: str = ANONYMOUS, deadline: Deadline | None = None) -> None:
        """Delete an adapter with all versions and aliases. Raises UnknownAdapter."""

        def delete(change: Change) -> None:
            change.transaction.delete_adapter(change.adapter.name)

        self._delete(name, actor, deadline, delete)

    # For what changes adapters

    @contextmanager
    def _changing(self, name: str, actor: str, deadline: Deadline | None) -> Iterator["Change"]:
        """A change of one adapter by the rows of its own transaction; shown in memory once it is committed."""
        until = deadline or Deadline(math.inf)
        with until.hold(self._lock):
            published: list[str] = []
            try:
                with self._catalogue.write(actor, deadline) as transaction:
                    before = transaction.adapter(name)
                    record = self._fit.build_record(before, self._records.get(name))
                    change = Change(name, transaction, before, record, published)
                    yield change
                    after = transaction.adapter(name)
            except BaseException:
                for digest in published:  # files that may have no row: they go unless there is one
                    self._retired.setdefault(digest, 0.0)
                raise
            self._take_over([after])
            change.record = self._records.get(name)

    def _delete(self, name: str, actor: str, deadline: Deadline | None, delete: Callable[["Change"], None]) -> None:
        """A change that makes room: where the disk has none for its rows, what was put aside is spent on them."""
        try:
            with self._changing(name, actor, deadline) as change:
                delete(change)
        except StorageFull:
            self._objects.spend_reserve()
            with self._changing(name, actor, deadline) as change:
                delete(change)
        left = {version.digest for version in change.record.versions} if change.record else set()
        self._retire({row.digest for row in change.before.versions} - left, self._grace)

    def _retire(self, digests: Iterable[str], seconds: float) -> None:
        """Let files go in so many seconds, unless a version refers to them then."""
        moment = time.monotonic() + seconds
        for digest in digests:
            self._retired[digest] = max(moment, self._retired.get(digest, moment))
        if not seconds:
            self._collect()

    def _collect(self) -> None:
        """Remove what was retired for long enough; what a crash leaves here goes at the next start."""
        now = time.monotonic()
        due = sorted(digest for digest, moment in list(self._retired.items()) if moment <= now)
        if not due:
            return
        deadline = Deadline(now + COLLECT_SECONDS)
        try:
            with deadline.hold(self._lock), self._catalogue.write(deadline=deadline) as transaction:
                for digest in due:
                    if not transaction.is_referenced(digest):
                        self._objects.remove(digest)
                    self._retired.pop(digest, None)
        except ServiceError as error:  # what was asked for is done or refused already; the follower tries again
            _logger.warning("files of deleted versions are still there: %s", error.detail)
        self._objects.keep_reserve()
