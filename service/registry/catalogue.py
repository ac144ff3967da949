"""The catalogue: which versions and aliases exist, in SQL. Knows no files, manifests or tensors.

Rows of deleted adapters and versions stay, marked: numbers are never used again and digests are remembered.
Only one writer runs at a time, across processes; files are published and removed within its transaction, so
that nobody removes what another is about to refer to.
"""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Select,
    String,
    Table,
    create_engine,
    delete,
    event,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import NullPool

from service.errors import Internal, NotReady, StorageFull
from service.settings import Settings

CATALOGUE_FILE = "registry.sqlite"
LIVE = "live"  # the alias that a bare name means
BUSY_SECONDS = 30.0  # how long a writer waits for another process
_READS = "reads"  # execution option of a transaction that writes nothing

_metadata = MetaData()
_adapters = Table(
    "adapters",
    _metadata,
    Column("name", String(64), primary_key=True),
    Column("last_version", Integer, nullable=False),
)
_versions = Table(
    "versions",
    _metadata,
    Column("name", ForeignKey("adapters.name"), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(71), nullable=False, index=True),
    Column("config", LargeBinary, nullable=False),  # the manifest's bytes: listing reads no files
    Column("weights_bytes", Integer, nullable=False),
    Column("created", DateTime(timezone=True), nullable=False),
    Column("deleted", DateTime(timezone=True)),
    Index("versions_of_digest", "name", "digest"),
)
_aliases = Table(
    "aliases",
    _metadata,
    Column("name", String(64), primary_key=True),
    Column("alias", String(64), primary_key=True),
    Column("version", Integer, nullable=False),
    ForeignKeyConstraint(["name", "version"], ["versions.name", "versions.version"]),
)


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One version that is not deleted."""

    name: str
    version: int
    digest: str
    config: bytes
    weights_bytes: int
    created: datetime


@dataclass(frozen=True, slots=True)
class AdapterRows:
    """One adapter as the catalogue has it; versions ascending."""

    name: str
    versions: tuple[VersionRow, ...]
    aliases: dict[str, int]


class Catalogue:
    """SQLite in WAL mode; what `write` committed survives a crash of the machine.

    Connections live for one transaction: writes are rare, and nothing has to be closed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._engine = create_engine(
            f"sqlite:///{path}",
            poolclass=NullPool,
            connect_args={"timeout": BUSY_SECONDS},
            hide_parameters=True,  # values stay out of errors, and so out of logs
        )
        event.listen(self._engine, "connect", _configure)
        event.listen(self._engine, "begin", _begin)
        with self.write() as transaction:
            _metadata.create_all(transaction.connection)

    @contextmanager
    def write(self) -> Iterator["Transaction"]:
        """The one write transaction there is; committed and durable at its end, rolled back on an error.

        Raises:
            StorageFull: no room left. NotReady: another process held the catalogue for too long.
        """
        with self._transaction({}) as transaction:
            yield transaction

    @contextmanager
    def read(self) -> Iterator["Transaction"]:
        """One state of the catalogue, whatever is written meanwhile; waits for no writer and holds none up.

        Raises:
            NotReady, Internal: the catalogue cannot be read.
        """
        with self._transaction({_READS: True}) as transaction:
            yield transaction

    @contextmanager
    def _transaction(self, options: dict[str, bool]) -> Iterator["Transaction"]:
        try:
            with self._engine.execution_options(**options).begin() as connection:
                yield Transaction(connection)
        except DatabaseError as error:
            raise _translate(error.orig, self._path) from error
        except sqlite3.Error as error:  # from `_configure`
            raise _translate(error, self._path) from error


@dataclass(frozen=True, slots=True)
class Transaction:
    """Reads and writes of one transaction."""

    connection: Connection

    def adapters(self) -> list[AdapterRows]:
        """Every adapter that has versions, by name."""
        versions: dict[str, list[VersionRow]] = {}
        for row in self.connection.execute(_versions_there().order_by(_versions.c.name, _versions.c.version)):
            versions.setdefault(row.name, []).append(_version_row(row))
        aliases: dict[str, dict[str, int]] = {}
        for name, alias, version in self.connection.execute(select(*_aliases.columns)):
            aliases.setdefault(name, {})[alias] = version
        return [AdapterRows(name, tuple(rows), aliases.get(name, {})) for name, rows in versions.items()]

    def adapter(self, name: str) -> AdapterRows:
        """One adapter; without versions when there is none of that name."""
        versions = _versions_there().where(_versions.c.name == name).order_by(_versions.c.version)
        aliases = select(_aliases.c.alias, _aliases.c.version).where(_aliases.c.name == name)
        return AdapterRows(
            name=name,
            versions=tuple(_version_row(row) for row in self.connection.execute(versions)),
            aliases={row.alias: row.version for row in self.connection.execute(aliases)},
        )

    def was_seen(self, name: str, digest: str) -> bool:
        """Whether the adapter ever had a version of this digest, deleted or not."""
        return self._count(_versions.c.name == name, _versions.c.digest == digest) > 0

    def is_referenced(self, digest: str) -> bool:
        """Whether a version that is not deleted has this digest."""
        return self._count(_versions.c.digest == digest, _versions.c.deleted.is_(None)) > 0

    def referenced(self) -> set[str]:
        """Digests of all versions that are not deleted."""
        return set(self.connection.scalars(select(_versions.c.digest).where(_versions.c.deleted.is_(None))))

    def add_version(self, name: str, digest: str, config: bytes, weights_bytes: int) -> int:
        """Add a version under the next number, which is returned."""
        last = self.connection.scalar(select(_adapters.c.last_version).where(_adapters.c.name == name))
        number = 1 if last is None else int(last) + 1
        if last is None:
            self.connection.execute(insert(_adapters).values(name=name, last_version=number))
        else:
            self.connection.execute(update(_adapters).where(_adapters.c.name == name).values(last_version=number))
        self.connection.execute(
            insert(_versions).values(
                name=name,
                version=number,
                digest=digest,
                config=config,
                weights_bytes=weights_bytes,
                created=datetime.now(UTC),
            )
        )
        return number

    def set_alias(self, name: str, alias: str, version: int) -> None:
        self.delete_alias(name, alias)
        self.connection.execute(insert(_aliases).values(name=name, alias=alias, version=version))

    def delete_alias(self, name: str, alias: str) -> None:
        self.connection.execute(delete(_aliases).where(_aliases.c.name == name, _aliases.c.alias == alias))

    def delete_versions(self, name: str, versions: list[int]) -> None:
        """Mark versions as deleted and remove the aliases that point to them."""
        self.connection.execute(delete(_aliases).where(_aliases.c.name == name, _aliases.c.version.in_(versions)))
        self.connection.execute(
            update(_versions)
            .where(_versions.c.name == name, _versions.c.version.in_(versions))
            .values(deleted=datetime.now(UTC))
        )

    def _count(self, *conditions: Any) -> int:
        return int(self.connection.scalar(select(func.count()).select_from(_versions).where(*conditions)) or 0)


def open_catalogue(settings: Settings) -> Catalogue:
    """The catalogue that these settings name; made if there is none yet."""
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Internal(f"the data directory {settings.data_dir} cannot be made: {error.strerror}") from error
    return Catalogue(settings.data_dir / CATALOGUE_FILE)


def _versions_there() -> Select[Any]:
    return select(_versions).where(_versions.c.deleted.is_(None))


def _version_row(row: Any) -> VersionRow:
    return VersionRow(
        name=row.name,
        version=row.version,
        digest=row.digest,
        config=row.config,
        weights_bytes=row.weights_bytes,
        created=row.created.replace(tzinfo=UTC),  # SQLite forgets the zone; only UTC is written
    )


def _configure(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where `_begin` says so
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    reads = connection.get_execution_options().get(_READS)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _translate(error: BaseException | None, path: Path) -> StorageFull | NotReady | Internal:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code
    if code == sqlite3.SQLITE_BUSY:
        return NotReady("another process is writing to the registry; try again", retry_after=1.0)
    no_room = code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and _is_full(path)
    if code == sqlite3.SQLITE_FULL or no_room:
        return StorageFull(f"the disk of the data directory is full: {error}")
    return Internal(f"the registry's catalogue failed: {error}")


def _is_full(path: Path) -> bool:
    return shutil.disk_usage(path.parent).free < 2**16
