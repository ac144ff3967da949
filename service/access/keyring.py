"""The keys that a running service knows: the environment's, and the stored ones as of the last look.

It fails closed. Rows of keys are never deleted, so a table that lacks a key that was known was emptied, lost or
replaced: the key holds on, and `fault` says what happened. A server that ever knew a stored key leaves MARKER in its
data directory, and stays closed when it starts again, whatever became of the database.
"""

import asyncio
import hmac
import ipaddress
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

from service.access.key_table import KeyTable
from service.access.keys import Grant, Key, KeyState, Scope, Token, digest_of
from service.database import open_database
from service.errors import Forbidden, NotReady, RegistryUnavailable, Unauthorized, UnknownAdapter
from service.notices import Notices, Topic
from service.routine import Routine
from service.settings import Settings

POLL_SECONDS: Final = 0.5  # keys made and revoked elsewhere are seen within twice that
MARKER: Final = "keys-in-force"  # in the data directory

_NOBODYS: Final = digest_of("")  # compared with where there is no such key: as much work as where there is one
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a request comes from.

    Args:
        actor: a stored key's id, `env:inference-1`, `env:admin-1` and so on, or `anonymous`.
        name: the stored key's label.
    """

    actor: str
    grant: Grant
    name: str = ""

    def require_scope(self, scope: Scope) -> None:
        """Raises Forbidden where the caller's key lacks `scope`."""
        if not self.grant.allows(scope):
            has = ", ".join(sorted(self.grant.scopes))
            raise Forbidden(f"this call needs a key with the scope {scope}; this one has {has}")

    def require_adapter(self, reference: str) -> None:
        """Raises UnknownAdapter for one that the caller's key is not bound to, whether or not there is one:
        a tenant does not learn what others have.

        Args:
            reference: `name`, `name@2` or `name@alias`.
        """
        if not self.grant.covers(reference.partition("@")[0]):
            raise UnknownAdapter(f"there is no adapter {reference[:80]!a}", adapter=reference[:130])

    def sees(self, label: str, value: str) -> bool:
        """Whether a metric's series with this `adapter` or `key` label is the caller's to see."""
        if self.grant.allows(Scope.ADMIN) and not self.grant.adapters:
            return True
        return label == "adapter" and self.grant.allows(Scope.READ) and self.grant.covers(value)


ANONYMOUS: Final = Caller("anonymous", Grant(frozenset(Scope)))


class Keyring:
    """Thread-safe: looks at the stored keys may run beside everything else.

    Args:
        open_table: opens the stored keys; may fail while the database is away.
    """

    def __init__(self, settings: Settings, open_table: Callable[[], KeyTable] | None = None) -> None:
        self._open_table = open_table or (lambda: KeyTable(open_database(settings.data_dir, settings.database_url)))
        self._table: KeyTable | None = None
        self._stamp: tuple[object, ...] = ()  # the table's, when it was last read
        self._following = Routine("following the keys", self._look)
        self._stored: Mapping[str, Key] | None = None  # None until they could be read; replaced whole
        self._marker = settings.data_dir / MARKER
        self._environment = [
            (key.encode(), Caller(f"env:{kind}-{number}", Grant(scopes)))
            for kind, keys, scopes in (
                ("admin", settings.admin_keys, frozenset(Scope)),
                ("inference", settings.inference_keys, frozenset({Scope.INFER, Scope.READ})),
            )
            for number, key in enumerate(keys, start=1)
        ]
        self._had_stored = self._marker.exists()
        self._lost = 0  # keys that were known and are not in the table any more
        self._is_exposed = not (settings.allow_anonymous or is_loopback(settings.host))

    @property
    def in_force(self) -> bool:
        """Whether there are keys, or ever were stored ones.

        Raises:
            NotReady: whether there are stored keys is not known yet.
        """
        return bool(self._environment or self._had_stored or self._known())

    @property
    def closed(self) -> bool:
        """Whether a key is asked for: where keys are in force, and always where others can reach the service.

        Raises:
            NotReady: as `in_force`.
        """
        return self._is_exposed or self.in_force

    def caller(self, authorization: str | None) -> Caller:
        """Whom an Authorization header belongs to; compares in constant time.

        Raises:
            Unauthorized: no key, not a bearer key, or one that is unknown, expired or revoked.
            NotReady: it may be a stored key, and these could not be read yet.
        """
        key = bearer(authorization)
        if not key:
            raise Unauthorized("this call needs a key: Authorization: Bearer ...")
        given, found = key.encode(), None
        for candidate, caller in self._environment:
            if hmac.compare_digest(given, candidate) and found is None:
                found = caller
        return found or self._stored_caller(key)

    @property
    def fault(self) -> str | None:
        """Why the keys that are known may not be what the database has: they hold; None while all is well."""
        fault = self._following.fault
        return (
            None if fault is None else f"stored keys cannot be read or were lost, and those that are known hold {fault}"
        )

    def refresh(self) -> None:
        """Takes over what changed among the stored keys; one small query where nothing did. Never raises."""
        self._following.once()

    async def start(self, notices: Notices | None = None) -> None:
        """The first look, and then one after the other in a thread until `close`, at once where others tell.

        Where the first one fails, calls that need a key are answered NotReady until one succeeds.
        """
        await asyncio.to_thread(self.refresh)
        wake = self._following.wake
        self._following.start(notices.pace(Topic.KEYS, wake, POLL_SECONDS) if notices else POLL_SECONDS)

    def close(self) -> None:
        """Looks no more and gives the database back; what is known stays. Does not wait for a database that hangs."""
        self._following.stop(POLL_SECONDS)
        if self._table is not None:
            self._table.close()

    def _look(self) -> None:
        if self._table is None:
            self._table = self._open_table()
        stamp = self._table.stamp()
        if self._stored is None or stamp != self._stamp:
            there = {key.id: key for key in self._table.all_keys()}
            if there:
                self._remember()
            self._stored = {**(self._stored or {}), **there}
            self._lost = len(self._stored) - len(there)
            self._stamp = stamp
        if fault := self._loss():
            raise RegistryUnavailable(fault)

    def _loss(self) -> str | None:
        """What the table lacks that it had."""
        if self._lost:
            return (
                f"the database no longer has {self._lost} of the keys that were known: they hold until this process "
                "ends; restore the database"
            )
        if self._had_stored and not self._stored:
            return (
                f"the database has no keys, and {self._marker} says that there were some: none of them is accepted; "
                "restore the database, or make a new key with `ipet keys create`"
            )
        return None

    def _remember(self) -> None:
        self._had_stored = True
        try:
            self._marker.touch(0o600)
        except OSError as error:
            _log.warning("%s cannot be written: %s", self._marker, error.strerror)

    def _known(self) -> Mapping[str, Key]:
        if self._stored is None:
            raise NotReady("the stored keys could not be read yet", retry_after=1.0)
        return self._stored

    def _stored_caller(self, text: str) -> Caller:
        token = Token.parse(text)
        if token is not None:
            key = self._known().get(token.id)
            if key is None:
                hmac.compare_digest(_NOBODYS, digest_of(token.secret))
            elif key.opens_with(token.secret):
                state = key.state(datetime.now(UTC))
                if state is KeyState.ACTIVE:
                    return Caller(key.id, key.grant, key.name)
                raise Unauthorized(f"the key {key.id} is {state}; ask for a new one")
        raise Unauthorized("the key is not one of this service's keys")


def bearer(authorization: str | None) -> str:
    """The key in an Authorization header; empty where there is none."""
    scheme, _, key = (authorization or "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


@lru_cache(256)
def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address, can only be this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
