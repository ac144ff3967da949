"""The catalogue: which versions and aliases exist, in SQL. Knows no files, manifests or tensors.

Files are published and removed within its write transaction, so that nobody removes what another is about to
refer to. Every change raises the catalogue's revision and leaves an event in the audit.
"""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Select, delete, func, insert, select, update

from service.database import Database, open_database
from service.deadline import Deadline
from service.errors import RegistryUnavailable
from service.notices import Topic, announce
from service.registry.adapters import VersionRow
from service.registry.audit import ANONYMOUS, Action, Event, append
from service.registry.tables import adapters, aliases, changes, identity, metadata, versions

LIVE = "live"  # the alias that a bare name means
_NAMES_AT_ONCE = 500  # in one query
_ROW = [versions.c[each.name] for each in fields(VersionRow)]


@dataclass(frozen=True, slots=True)
class AdapterRows:
    """One adapter as the catalogue has it; versions ascending."""

    name: str
    versions: tuple[VersionRow, ...]
    aliases: dict[str, int]


class Catalogue:
    """The registry's tables in one database; made where they are missing.

    Every transaction is on the catalogue that was there at first: another one in its place, of other numbers and
    digests, would make this server forget what it serves.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.identity = ""  # by which a directory of objects knows it
        database.prepare(metadata)
        with self.read() as transaction:
            known = transaction.identity()
        if known is None:
            with self.write() as transaction:
                known = transaction.identify()
        self.identity = known

    @contextmanager
    def write(self, actor: str = ANONYMOUS, deadline: Deadline | None = None) -> Iterator["Transaction"]:
        """The one write transaction there is, on behalf of `actor`. Raises as `Database.write`."""
        with self._database.write(deadline) as connection:
            yield self._transaction(connection, actor)

    @contextmanager
    def read(self) -> Iterator["Transaction"]:
        """One moment of the catalogue. Raises as `Database.write`."""
        with self._database.read() as connection:
            yield self._transaction(connection, ANONYMOUS)

    def _transaction(self, connection: Connection, actor: str) -> "Transaction":
        transaction = Transaction(connection, actor)
        if self.identity not in ("", transaction.identity()):
            raise RegistryUnavailable(
                "the database holds another catalogue than when this server began; what is known is served, nothing "
                "can be changed until it is back",
                retry_after=2.0,
            )
        return transaction

    def close(self) -> None:
        self._database.close()


@dataclass(frozen=True, slots=True)
class Transaction:
    """Reads and writes of one transaction."""

    connection: Connection
    actor: str = ANONYMOUS

    # Reading

    def adapters(self, names: Sequence[str] | None = None) -> list[AdapterRows]:
        """Every adapter that has versions, by name; or those of `names`, without versions where there is none."""
        rows_of: dict[str, list[VersionRow]] = {name: [] for name in names or ()}
        aliases_of: dict[str, dict[str, int]] = {}
        some_versions, some_aliases = _versions_there(), select(*aliases.columns)
        if names is not None:
            some_versions = some_versions.where(versions.c.name.in_(names))
            some_aliases = some_aliases.where(aliases.c.name.in_(names))
        for row in self.connection.execute(some_versions.order_by(versions.c.name, versions.c.version)):
            rows_of.setdefault(row.name, []).append(VersionRow(*row))
        for name, alias, version in self.connection.execute(some_aliases):
            aliases_of.setdefault(name, {})[alias] = version
        return [AdapterRows(name, tuple(rows), aliases_of.get(name, {})) for name, rows in rows_of.items()]

    def adapter(self, name: str) -> AdapterRows:
        """One adapter; without versions when there is none of that name."""
        return self.adapters([name])[0]

    def version(self, name: str, number: int) -> VersionRow | None:
        """One version, also a deleted one."""
        found = select(*_ROW).where(versions.c.name == name, versions.c.version == number)
        row = self.connection.execute(found).one_or_none()
        return None if row is None else VersionRow(*row)

    def names(self) -> list[str]:
        """Every name that was ever used, in order."""
        return list(self.connection.scalars(select(adapters.c.name).order_by(adapters.c.name)))

    def last_version(self, name: str) -> int:
        """The newest number that was ever given, 0 for a name that was never used."""
        return int(self.connection.scalar(select(adapters.c.last_version).where(adapters.c.name == name)) or 0)

    def revision(self) -> int:
        """Grows with every change."""
        return int(self.connection.scalar(select(func.max(changes.c.revision))) or 0)

    def changed_since(self, revision: int) -> list[AdapterRows]:
        """The adapters that changed after a revision, the deleted ones without versions."""
        names = list(self.connection.scalars(select(changes.c.name).where(changes.c.revision > revision)))
        chunks = (names[i : i + _NAMES_AT_ONCE] for i in range(0, len(names), _NAMES_AT_ONCE))
        return [rows for chunk in chunks for rows in self.adapters(chunk)]

    def identity(self) -> str | None:
        """The catalogue's own id; None of an empty one."""
        found: str | None = self.connection.scalar(select(identity.c.id))
        return found

    def seen(self, digests: Sequence[str]) -> dict[str, bool]:
        """Digest -> whether it is the one of a version that is there, for those that were ever seen.

        A name is part of its config, and so of its digest: none belongs to two.
        """
        found = select(versions.c.digest, versions.c.deleted).where(versions.c.digest.in_(digests))
        rows = self.connection.execute(found.order_by(versions.c.version))
        return {digest: deleted is None for digest, deleted in rows}

    def is_referenced(self, digest: str) -> bool:
        """Whether a version that is not deleted has this digest."""
        return self.connection.scalar(_versions_there().where(versions.c.digest == digest).limit(1)) is not None

    def holdings(self, domain: str) -> tuple[int, int]:
        """Number of the versions that count to a domain and are not deleted, and bytes of their files."""
        size = func.coalesce(versions.c.bytes, versions.c.weights_bytes)
        mine = _versions_there().where(versions.c.domain == domain)
        number, stored = self.connection.execute(mine.with_only_columns(func.count(), func.sum(size))).one()
        return number, int(stored or 0)

    def deleted_since(self, moment: datetime) -> set[str]:
        """Digests of the versions deleted after a moment."""
        return set(self.connection.scalars(select(versions.c.digest).where(versions.c.deleted > moment)))

    # Writing

    def identify(self) -> str:
        """The catalogue's id, which a new one is given."""
        known = self.identity()
        if known is None:
            known = str(uuid.uuid4())
            self.connection.execute(insert(identity).values(id=known))
        return known

    def add_version(
        self,
        name: str,
        digest: str,
        config: bytes,
        weights_bytes: int,
        size: int | None = None,
        domain: str | None = None,
    ) -> int:
        """Add a version of `size` bytes in all, which counts to `domain`, under the next number, which is returned."""
        number = self.last_version(name) + 1
        self.count_to(name, number)
        self.connection.execute(
            insert(versions).values(
                name=name,
                version=number,
                digest=digest,
                config=config,
                weights_bytes=weights_bytes,
                created=datetime.now(UTC),
                bytes=size,
                domain=domain,
            )
        )
        self._changed(name, Action.UPLOAD, version=number, digest=digest)
        return number

    def repaired(self, name: str, version: int, digest: str) -> None:
        """Note that the files of a version were put back."""
        self._changed(name, Action.REPAIR, version=version, digest=digest)

    def set_alias(self, name: str, alias: str, version: int) -> None:
        previous = self.put_alias(name, alias, version)
        self._changed(name, Action.ALIAS, version=version, alias=alias, previous=previous)

    def delete_alias(self, name: str, alias: str) -> None:
        previous = self._drop_alias(name, alias)
        self._changed(name, Action.DELETE_ALIAS, alias=alias, previous=previous)

    def delete_version(self, name: str, version: int) -> None:
        """Mark a version as deleted and remove the aliases that point to it."""
        self._mark_deleted(name, [version])
        self._changed(name, Action.DELETE_VERSION, version=version)

    def delete_adapter(self, name: str) -> None:
        """Mark all versions as deleted and remove the aliases."""
        self._mark_deleted(name, [row.version for row in self.adapter(name).versions])
        self._changed(name, Action.DELETE_ADAPTER)

    def put_alias(self, name: str, alias: str, version: int) -> int | None:
        """Set an alias without an event (of a restore, which brings its own); what it pointed to before."""
        previous = self._drop_alias(name, alias)
        self.connection.execute(insert(aliases).values(name=name, alias=alias, version=version))
        return previous

    def count_to(self, name: str, number: int) -> None:
        """Note the newest number that an adapter ever had."""
        if not self.connection.execute(
            update(adapters).where(adapters.c.name == name).values(last_version=number)
        ).rowcount:
            self.connection.execute(insert(adapters).values(name=name, last_version=number))

    def touch(self, name: str) -> None:
        """Raise the revision for an adapter, so that whoever follows the catalogue reads it again."""
        revision = self.revision() + 1
        self.connection.execute(delete(changes).where(changes.c.name == name))
        self.connection.execute(insert(changes).values(name=name, revision=revision))
        announce(self.connection, Topic.ADAPTERS)

    def _changed(self, name: str, action: Action, **details: Any) -> None:
        self.touch(name)
        append(self.connection, [Event(datetime.now(UTC), self.actor, action, name, **details)])

    def _drop_alias(self, name: str, alias: str) -> int | None:
        mine = (aliases.c.name == name, aliases.c.alias == alias)
        previous = self.connection.scalar(select(aliases.c.version).where(*mine))
        self.connection.execute(delete(aliases).where(*mine))
        return previous

    def _mark_deleted(self, name: str, numbers: Sequence[int]) -> None:
        self.connection.execute(delete(aliases).where(aliases.c.name == name, aliases.c.version.in_(numbers)))
        mine = (versions.c.name == name, versions.c.version.in_(numbers))
        self.connection.execute(update(versions).where(*mine).values(deleted=datetime.now(UTC)))


def catalogue_of(data_dir: Path, database_url: str = "") -> Catalogue:
    """The catalogue of a data directory: SQLite in it, unless a URL is given."""
    return Catalogue(open_database(data_dir, database_url))


def _versions_there() -> Select[Any]:
    return select(*_ROW).where(versions.c.deleted.is_(None))
