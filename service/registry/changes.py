"""Changes of adapters: each judged by the rows of its own transaction, committed by its deadline or never.

The order of an upload is: files, rows, memory; of a deletion, the same backwards.
"""

import logging
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from service.deadline import Deadline
from service.errors import RegistryUnavailable, ServiceError, UnknownAdapter, UnknownVersion, VersionIsLive
from service.registry.adapters import AdapterRecord, AdapterVersion, require_alias
from service.registry.audit import ANONYMOUS
from service.registry.catalogue import LIVE, AdapterRows, Catalogue, Transaction
from service.registry.fit import Fit
from service.registry.objects import ObjectStore
from service.registry.view import RegistryView

COLLECT_SECONDS = 1.0  # at most, for other writers to let files be removed
AWAY_SECONDS = 10.0  # before they are tried to be removed from where they could not be reached

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Change:
    """One change of one adapter.

    Args:
        before: its rows, as the transaction found them.
        record: the adapter by those rows; once committed, as it was left. None where there is none.
    """

    name: str
    transaction: Transaction
    before: AdapterRows
    record: AdapterRecord | None

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
        with self._deleting(name, actor, deadline) as change:
            if alias not in change.adapter.aliases:
                raise UnknownVersion(f"adapter {name} has no alias {alias[:64]!a}", adapter=name)
            if alias == LIVE:
                raise VersionIsLive(f"the alias live of {name} can be moved, not deleted", adapter=name)
            change.transaction.delete_alias(name, alias)

    def delete_version(self, name: str, version: int, actor: str = ANONYMOUS, deadline: Deadline | None = None) -> None:
        """Delete a version and the aliases that point to it. Raises UnknownVersion, VersionIsLive."""
        with self._deleting(name, actor, deadline) as change:
            adapter = change.adapter
            if version not in adapter.unreadable:
                adapter.version(version)
            if adapter.live == version:
                raise VersionIsLive(
                    f"version {version} of {name} is live; move live first, or delete the whole adapter",
                    adapter=f"{name}@{version}",
                )
            change.transaction.delete_version(name, version)

    def delete_adapter(self, name: str, actor: str = ANONYMOUS, deadline: Deadline | None = None) -> None:
        """Delete an adapter with all versions and aliases. Raises UnknownAdapter."""
        with self._deleting(name, actor, deadline) as change:
            change.transaction.delete_adapter(change.adapter.name)

    # For what changes adapters

    @contextmanager
    def _changing(self, name: str, actor: str, deadline: Deadline | None) -> Iterator[Change]:
        """A change of one adapter by the rows of its own transaction; shown in memory once it is committed."""
        until = deadline or Deadline(math.inf)
        with until.hold(self._lock):
            with self._catalogue.write(actor, deadline) as transaction:
                before = transaction.adapter(name)
                change = Change(name, transaction, before, self._fit.build_record(before, self._records.get(name)))
                yield change
                after = transaction.adapter(name)
            self._take_over([after])
            change.record = self._records.get(name)

    @contextmanager
    def _deleting(self, name: str, actor: str, deadline: Deadline | None) -> Iterator[Change]:
        """A change that makes room; where the disk has none for its rows, what was put aside is spent on them."""
        self._objects.local.spend_reserve()
        with self._changing(name, actor, deadline) as change:
            yield change
        left = {version.digest for version in change.record.versions} if change.record else set()
        self._retire({row.digest for row in change.before.versions} - left, self._grace)

    def _retire(self, digests: Iterable[str], seconds: float) -> None:
        """Let files go in so many seconds, unless a version refers to them then."""
        moment = time.monotonic() + seconds
        for digest in digests:
            self._retired[digest] = max(moment, self._retired.get(digest, moment))
        if not seconds:
            self._collect()

    def _retire_gone(self, versions: Iterable[AdapterVersion]) -> None:
        """Let the copies here go of what another server deleted, too."""
        moment = time.monotonic() + self._grace
        for version in versions:
            self._retired.setdefault(version.digest, moment)

    def _used_after_all(self, version: AdapterVersion) -> None:
        self._retire([version.digest], max(self._grace, COLLECT_SECONDS))

    def _collect(self) -> None:
        """Remove what was retired for long enough; what a crash leaves here goes at the next start."""
        now = time.monotonic()
        due = sorted(digest for digest, moment in list(self._retired.items()) if moment <= now)
        if not due:
            return
        try:
            found = self._leftovers(due, Deadline(now + COLLECT_SECONDS / 2))
            gone: dict[str, float] = {}
            keys: list[str] = []
            deadline = Deadline(time.monotonic() + COLLECT_SECONDS)
            with deadline.hold(self._lock), self._catalogue.write(deadline=deadline) as transaction:
                for digest, (leftovers, seconds) in found.items():
                    if deadline.left < COLLECT_SECONDS / 2:  # the rest is for later
                        break
                    gone[digest] = 0.0
                    if not transaction.is_referenced(digest):
                        self._objects.local.remove(digest)
                        keys, gone[digest] = keys + leftovers, seconds
            if keys:  # held up by nothing, and holding up nobody: an object store takes its time
                self._objects.discard(keys)
            for digest, seconds in gone.items():
                if self._retired.get(digest, math.inf) <= now:  # else it was retired anew meanwhile
                    del self._retired[digest]
                    if seconds:
                        self._retired[digest] = now + seconds
        except ServiceError as error:  # what was asked for is done or refused already; the follower tries again
            _logger.warning("files of deleted versions are still there: %s", error.detail)
            if isinstance(error, RegistryUnavailable):  # not at each turn
                self._retired |= {digest: now + AWAY_SECONDS for digest in due if digest in self._retired}
        self._objects.local.keep_reserve()

    def _leftovers(self, digests: Iterable[str], deadline: Deadline) -> dict[str, tuple[list[str], float]]:
        """Of as many as there is time for; what is new follows the catalogue in the same thread."""
        found = {}
        for digest in digests:
            found[digest] = self._objects.leftovers(digest)
            if deadline.left <= 0:
                break
        return found
