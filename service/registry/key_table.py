"""Keys at rest: a table beside the catalogue's, in the same database. Knows no HTTP.

Rows are never deleted. Every change takes the next revision, so that one number tells a running server
whether anything is new.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Self

from sqlalchemy import Column, DateTime, Integer, LargeBinary, MetaData, String, Table, func, insert, select, update

from service.errors import InvalidRequest
from service.registry.catalogue import Catalogue, Transaction, open_catalogue
from service.registry.keys import Grant, Key, Rate, Scope, Token, digest_of, require_key_id, require_key_name
from service.settings import Settings

_metadata = MetaData()
_keys = Table(
    "api_keys",
    _metadata,
    Column("id", String(12), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("digest", LargeBinary(32), nullable=False),
    Column("scopes", String(128), nullable=False),  # space-separated
    Column("adapters", String(64 * 65), nullable=False),  # space-separated patterns
    Column("rate", String(16)),
    Column("concurrency", Integer),
    Column("created", DateTime(timezone=True), nullable=False),
    Column("expires", DateTime(timezone=True)),
    Column("revoked", DateTime(timezone=True)),
    # Unique: two writers that took the same number would hide one change from a server; one fails instead.
    Column("revision", Integer, nullable=False, unique=True),
)


class KeyTable:
    """The keys of one database. Thread-safe."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        with catalogue.write() as transaction:
            _metadata.create_all(transaction.connection)

    @classmethod
    @contextmanager
    def opened(cls, settings: Settings) -> Iterator[Self]:
        """The keys of the database that these settings name, for the time of a `with`. Raises ServiceError."""
        catalogue = open_catalogue(settings)
        try:
            yield cls(catalogue)
        finally:
            catalogue.close()

    def close(self) -> None:
        """Gives the database's connections back."""
        self._catalogue.close()

    def create(self, name: str, grant: Grant) -> tuple[Key, Token]:
        """A new key and its token, which nobody can tell again.

        Raises:
            InvalidRequest: the name, or the grant, cannot be.
        """
        require_key_name(name)
        token = Token.mint()
        key = Key(token.id, name, grant, datetime.now(UTC), None, digest_of(token.secret))
        with self._catalogue.write() as transaction:
            transaction.connection.execute(insert(_keys).values(_row(key) | {"revision": _next_revision(transaction)}))
        return key, token

    def revoke(self, key_id: str) -> Key:
        """Ends a key for good; one that is revoked stays as it is.

        Raises:
            InvalidRequest: there is no such key.
        """
        require_key_id(key_id)
        with self._catalogue.write() as transaction:
            row = transaction.connection.execute(select(_keys).where(_keys.c.id == key_id)).one_or_none()
            if row is None:
                raise InvalidRequest(f"there is no key {key_id}")
            key = _key(row)
            if key.revoked is None:
                key = replace(key, revoked=datetime.now(UTC))
                changes = {"revoked": key.revoked, "revision": _next_revision(transaction)}
                transaction.connection.execute(update(_keys).where(_keys.c.id == key_id).values(changes))
        return key

    def all_keys(self) -> list[Key]:
        """All of them, the oldest first."""
        with self._catalogue.read() as transaction:
            return [_key(row) for row in transaction.connection.execute(select(_keys).order_by(_keys.c.created))]

    def revision(self) -> int:
        """Grows with every change; 0 without keys."""
        with self._catalogue.read() as transaction:
            return _revision(transaction)


def _revision(transaction: Transaction) -> int:
    return int(transaction.connection.scalar(select(func.max(_keys.c.revision))) or 0)


def _next_revision(transaction: Transaction) -> int:
    return _revision(transaction) + 1


def _row(key: Key) -> dict[str, Any]:
    grant = key.grant
    return {
        "id": key.id,
        "name": key.name,
        "digest": key.digest,
        "scopes": " ".join(sorted(grant.scopes)),
        "adapters": " ".join(grant.adapters),
        "rate": None if grant.rate is None else str(grant.rate),
        "concurrency": grant.concurrency,
        "created": key.created,
        "expires": grant.expires,
        "revoked": key.revoked,
    }


def _key(row: Any) -> Key:
    grant = Grant(
        scopes=frozenset(Scope(word) for word in row.scopes.split()),
        adapters=tuple(row.adapters.split()),
        rate=None if row.rate is None else Rate.parse(row.rate),
        concurrency=row.concurrency,
        expires=_utc(row.expires),
    )
    created = _utc(row.created) or datetime.min.replace(tzinfo=UTC)
    return Key(row.id, row.name, grant, created, _utc(row.revoked), bytes(row.digest))


def _utc(moment: datetime | None) -> datetime | None:
    """SQLite forgets the zone, and only UTC is written; PostgreSQL answers in the session's."""
    if moment is None:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
