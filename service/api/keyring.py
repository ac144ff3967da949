"""The keys that a running service knows: the environment's, and the stored ones as of the last look."""

import asyncio
import hmac
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from service.errors import NotReady, ServiceError, Unauthorized, UnknownAdapter
from service.registry.catalogue import open_catalogue
from service.registry.key_table import KeyTable
from service.registry.keys import Grant, Key, KeyState, Scope, Token, digest_of
from service.settings import Settings

POLL_SECONDS: Final = 0.5  # keys made and revoked elsewhere are seen within twice that

_NOBODYS: Final = digest_of("")  # compared with where there is no such key: as much work as where there is one
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a request comes from.

    Args:
        actor: a stored key's id, `env:inference-1`, `env:admin-1` and so on, or `anonymous`.
    """

    actor: str
    grant: Grant

    def require(self, reference: str) -> None:
        """Raises UnknownAdapter for one that the caller's key is not bound to, whether or not there is one:
        a tenant does not learn what others have.

        Args:
            reference: `name`, `name@2` or `name@alias`.
        """
        if not self.grant.covers(reference.partition("@")[0]):
            raise UnknownAdapter(f"there is no adapter {reference[:80]!a}", adapter=reference[:130])


ANONYMOUS: Final = Caller("anonymous", Grant(frozenset(Scope)))


class Keyring:
    """Thread-safe: `refresh` may run beside everything else.

    Args:
        open_table: opens the stored keys; may fail while the database is away.
    """

    def __init__(self, settings: Settings, open_table: Callable[[], KeyTable] | None = None) -> None:
        self._open_table = open_table or (lambda: KeyTable(open_catalogue(settings)))
        self._table: KeyTable | None = None
        self._revision = 0
        self._failing = False
        self._ended = False
        self._lock = threading.Lock()  # held while the database is asked
        self._stored: Mapping[str, Key] | None = None  # None until they could be read; replaced whole
        self._environment = [
            (key.encode(), Caller(f"env:{kind}-{number}", Grant(scopes)))
            for kind, keys, scopes in (
                ("admin", settings.admin_keys, frozenset(Scope)),
                ("inference", settings.inference_keys, frozenset({Scope.INFER, Scope.READ})),
            )
            for number, key in enumerate(keys, start=1)
        ]

    @property
    def closed(self) -> bool:
        """Whether a key is asked for. The last key's revocation does not open the service to everyone.

        Raises:
            NotReady: whether there are stored keys is not known yet.
        """
        if self._environment:
            return True
        return bool(self._known())

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

    def refresh(self) -> None:
        """Takes over what changed among the stored keys; one small query where nothing did.

        Raises:
            ServiceError: they cannot be read; what is known stays.
        """
        with self._lock:
            if self._ended:
                return
            if self._table is None:
                self._table = self._open_table()
            revision = self._table.revision()
            if self._stored is None or revision != self._revision:
                self._stored = {key.id: key for key in self._table.all_keys()}
                self._revision = revision

    def close(self) -> None:
        """Gives the database back; what is known stays. Waits a moment, not for a database that hangs."""
        self._ended = True
        if self._lock.acquire(timeout=POLL_SECONDS):
            try:
                if self._table is not None:
                    self._table.close()
            finally:
                self._lock.release()

    async def start(self) -> None:
        """The first look; where it fails, calls that need a key are answered NotReady until one succeeds."""
        await self._look()

    async def watch(self) -> None:
        """Looks again and again until it is cancelled."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            await self._look()

    async def _look(self) -> None:
        try:
            await asyncio.to_thread(self.refresh)
            self._failing = False
        except (ServiceError, ValueError) as error:
            if not self._failing:
                _log.warning("the stored keys cannot be read, the last known ones hold: %s", error)
            self._failing = True

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
                    return Caller(key.id, key.grant)
                raise Unauthorized(f"the key {key.id} is {state}; ask for a new one")
        raise Unauthorized("the key is not one of this service's keys")


def bearer(authorization: str | None) -> str:
    """The key in an Authorization header; empty where there is none."""
    scheme, _, key = (authorization or "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""
