"""Keys at rest: a table beside the registry's, in the same database.

Rows are never deleted. Every change takes the next revision, so that one number tells a running server
whether anything is new.
"""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Column, Connection, Integer, LargeBinary, MetaData, String, Table, func, insert, select, update

from service.access.keys import (
    DEFAULT_DOMAIN,
    Grant,
    Key,
    Rate,
    Scope,
    Token,
    digest_of,
    require_key_id,
    require_key_name,
)
from service.database import Database, Moment
from service.errors import InvalidRequest
from service.notices import Topic, announce

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
    Column("created", Moment, nullable=False),
    Column("expires", Moment),
    Column("revoked", Moment),
    # Unique: two writers that took the same number would hide one change from a server; one fails instead.
    Column("revision", Integer, nullable=False, unique=True),
    Column("domain", String(64), nullable=False, server_default=DEFAULT_DOMAIN),
)


class KeyTable:
    """The keys of one database; the table is made where it is missing. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database
        database.prepare(_metadata)

    def close(self) -> None:
        """Gives the database's connections back."""
        self._database.close()

    def create(self, name: str, grant: Grant) -> tuple[Key, Token]:
        """A new key and its token, which nobody can tell again.

        Raises:
            InvalidRequest: the name, or the grant, cannot be.
        """
        require_key_name(name)
        token = Token.mint()
        key = Key(token.id, name, grant, datetime.now(UTC), None, digest_of(token.secret))
        with self._database.write() as connection:
            announce(connection, Topic.KEYS)
            connection.execute(insert(_keys).values(_row(key) | {"revision": _next_revision(connection)}))
        return key, token

    def revoke(self, key_id: str) -> Key:
        """Ends a key for good; one that is revoked stays as it is.

        Raises:
            InvalidRequest: there is no such key.
        """
        require_key_id(key_id)
        with self._database.write() as connection:
            row = connection.execute(select(_keys).where(_keys.c.id == key_id)).one_or_none()
            if row is None:
                raise InvalidRequest(f"there is no key {key_id}")
            key = _key(row)
            if key.revoked is None:
                announce(connection, Topic.KEYS)
                key = replace(key, revoked=datetime.now(UTC))
                changes = {"revoked": key.revoked, "revision": _next_revision(connection)}
                connection.execute(update(_keys).where(_keys.c.id == key_id).values(changes))
        return key

    def all_keys(self) -> list[Key]:
        """All of them, the oldest first."""
        with self._database.read() as connection:
            return [_key(row) for row in connection.execute(select(_keys).order_by(_keys.c.created))]

    def stamp(self) -> tuple[object, ...]:
        """Differs after every change, also in a table that took this one's place: revision, number, newest key."""
        newest = select(func.max(_keys.c.revision), func.count(), func.max(_keys.c.created))
        with self._database.read() as connection:
            return tuple(connection.execute(newest).one())


def _next_revision(connection: Connection) -> int:
    return int(connection.scalar(select(func.max(_keys.c.revision))) or 0) + 1


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
        "domain": grant.domain,
    }


def _key(row: Any) -> Key:
    grant = Grant(
        scopes=frozenset(Scope(word) for word in row.scopes.split()),
        adapters=tuple(row.adapters.split()),
        rate=None if row.rate is None else Rate.parse(row.rate),
        concurrency=row.concurrency,
        expires=row.expires,
        domain=row.domain,
    )
    return Key(row.id, row.name, grant, row.created, row.revoked, bytes(row.digest))
