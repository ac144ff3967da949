"""The SQL database of the service: SQLite in WAL mode, or PostgreSQL by URL; rooms bring their own tables.

Only one writer runs at a time, across processes and machines: SQLite's own write lock, an advisory lock of
PostgreSQL. Readers see one snapshot and wait for nobody.
"""

import math
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    Column,
    Connection,
    DateTime,
    Dialect,
    Engine,
    Integer,
    MetaData,
    Table,
    TypeDecorator,
    create_engine,
    event,
    insert,
    make_url,
    select,
    update,
)
from sqlalchemy import inspect as inspect_schema
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import CreateColumn

from service.deadline import Deadline
from service.errors import (
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    NotReady,
    RegistryUnavailable,
    ServiceError,
    StorageFull,
)
from service.private import FILE_MODE, close_to_others, make_private
from service.sqlite import BUSY_SECONDS, SqliteFile, busy, first_line, unreachable

DATABASE_FILE = "registry.sqlite"
SCHEMA = 1  # raised by a change of the tables that keeps servers of older releases from working on them
FILL = "fill"  # in a column's `info`: the statement that fills it for the rows there are when it is added
CONNECT_SECONDS = 3
_DEAD_PEER_MS = 10_000  # after so long without an acknowledgement a connection counts as lost
_WRITER_LOCK = 0x69706574  # "ipet": the advisory lock of PostgreSQL's one writer
_WAIT = "ipet_wait"  # seconds, of a transaction that writes

# Classes and codes of SQLSTATE, see PostgreSQL's appendix A. Gone: the server, the database, its tables.
_GONE = ("08", "57P", "25P03", "28", "3D", "58", "XX", "42P01", "42501")
_NO_ROOM = ("53100", "53200")
_BUSY = ("55P03", "40001", "40P01", "57014")

_schema = Table("schema_version", MetaData(), Column("version", Integer, primary_key=True, autoincrement=False))


class Moment(TypeDecorator[datetime]):
    """A moment in UTC, whichever database has it: SQLite forgets the zone, PostgreSQL answers in the session's."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Database:
    """Transactions on one database; what `write` committed survives a crash of the machine.

    Connections live for one transaction: those are few, none is left over from before a database went away, and
    nothing has to be closed.

    Args:
        url: `sqlite:///file` or `postgresql://user:password@host/database`.

    Raises:
        InvalidRequest: another kind of database, or one whose driver is not installed.
    """

    def __init__(self, url: str) -> None:
        self._url = _parse(url)
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        self.file = Path(self._url.database) if self.is_sqlite and self._url.database else None
        self._kept = SqliteFile(self.file) if self.file else None
        self._engine = _sqlite(self._kept) if self._kept else _postgresql(self._url)
        self._is_prepared = False

    def __str__(self) -> str:
        return str(self.file.resolve()) if self.file else self._url.render_as_string(hide_password=True)

    @contextmanager
    def write(self, deadline: Deadline | None = None) -> Iterator[Connection]:
        """The one write transaction there is; committed and durable at its end, rolled back on an error.

        Args:
            deadline: how long it waits for other writers, `BUSY_SECONDS` at most; nothing is committed after it.

        Raises:
            StorageFull: no room left. NotReady: another process held the catalogue for too long.
            DeadlineExceeded: the deadline is over; nothing was changed.
            RegistryUnavailable: the database cannot be reached; after a commit that broke off, nobody knows
                whether it happened.
        """
        until = deadline or Deadline(math.inf)
        seconds = min(until.left, BUSY_SECONDS)
        is_committing = False
        try:
            with self._engine.connect() as plain:
                connection = plain.execution_options(**{_WAIT: seconds})
                with connection.begin():
                    if not self.is_sqlite:
                        _lock_postgresql(connection, seconds, deadline is not None)
                    until.check()
                    self._check_schema(connection)
                    yield connection
                    until.begin_commit()
                    is_committing = True
        except DBAPIError as error:
            raise self._translate(error.orig or error, until, is_committing) from error

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one moment of the database. Raises as `write` does."""
        options = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
        try:
            with self._engine.connect() as plain:
                connection = plain.execution_options(**options)
                with connection.begin():
                    self._check_schema(connection)
                    yield connection
        except DBAPIError as error:
            raise self._translate(error.orig or error) from error

    def prepare(self, metadata: MetaData) -> None:
        """Make the tables and columns that are missing, of a new database or one that an older release left.

        Where nothing is missing, nothing is written. A column that was added later is nullable or has a
        `server_default`, which the rows that are there take. There is no way back: from now on, every transaction on a
        database that a newer release has changed raises RegistryUnavailable.
        """
        with self.read() as connection:
            self._is_prepared = not _missing(connection, _schema.metadata)
            if self._check_schema(connection) == SCHEMA and not _missing(connection, metadata):
                return
        with self.write() as connection:  # another process may have been first
            _schema.metadata.create_all(connection)
            self._is_prepared = True
            if not self._check_schema(connection):
                connection.execute(insert(_schema).values(version=SCHEMA))
            connection.execute(update(_schema).values(version=SCHEMA))
            metadata.create_all(connection)
            for table, column in _missing(connection, metadata):
                definition = CreateColumn(column).compile(dialect=connection.dialect)
                connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {definition}")
                if statement := column.info.get(FILL):
                    connection.exec_driver_sql(statement)
                for index in table.indexes:
                    index.create(connection, checkfirst=True)

    @contextmanager
    def outside(self) -> Iterator[Connection]:
        """A connection without a transaction, for statements that have none. Raises as `write` does."""
        try:
            with self._engine.connect() as plain:
                yield plain.execution_options(isolation_level="AUTOCOMMIT")
        except (DBAPIError, self._engine.dialect.loaded_dbapi.Error) as error:  # of statements past SQLAlchemy too
            raise self._translate(getattr(error, "orig", None) or error) from error

    def is_begun(self) -> bool:
        """Whether anything was ever kept here; looking makes nothing."""
        if self.file is not None and not (self.file.is_file() and self.file.stat().st_size):
            return False
        with closing(self), self.read() as connection:
            return bool(inspect_schema(connection).get_table_names())

    def require_begun(self) -> None:
        """Raise InvalidRequest where nothing was ever kept here."""
        if not self.is_begun():
            raise InvalidRequest(f"there is no registry in {self}; `ipet serve` and `ipet keys create` begin one")

    def close(self) -> None:
        """Give back what is held; the next transaction opens it again."""
        self._engine.dispose()
        if self._kept is not None:
            self._kept.close()

    def _check_schema(self, connection: Connection) -> int:
        """The schema of the database, 0 of one that has none yet. Raises RegistryUnavailable where it is too new."""
        version = int(connection.scalar(select(_schema.c.version)) or 0) if self._is_prepared else 0
        if version > SCHEMA:
            raise RegistryUnavailable(
                f"a newer release of ipet-serve has brought the database to schema {version}, this one knows {SCHEMA}: "
                "what is known is served, nothing can be changed by this server until it is upgraded"
            )
        return version

    def _translate(
        self, error: BaseException, deadline: Deadline | None = None, is_committing: bool = False
    ) -> ServiceError:
        told = self._kept.translate(error) if self._kept else _of_postgresql(error)
        if isinstance(told, NotReady) and deadline is not None and not deadline.left:
            return DeadlineExceeded(f"{told.detail}; the time for this change is over, and nothing was changed")
        if isinstance(told, RegistryUnavailable) and is_committing and not self.is_sqlite:
            return RegistryUnavailable(
                f"the database broke off while the change was committed ({first_line(error)}): whether it was made "
                "can be seen once the database is back; until then what is known is served",
                retry_after=2.0,
            )
        return told


def database_of(data_dir: Path, url: str = "") -> Database:
    """The database of a data directory: SQLite in it, unless a URL is given. Makes nothing yet."""
    return Database(url or f"sqlite:///{data_dir / DATABASE_FILE}")


def open_database(data_dir: Path, url: str = "") -> Database:
    """As `database_of`, in a directory that is made where it is missing, and closed to others."""
    database = database_of(data_dir, url)
    try:
        make_private(data_dir)
        if database.file is not None:
            database.file.touch(FILE_MODE)
            for beside in ("", "-wal", "-shm"):  # new ones get the mode of the first from SQLite
                close_to_others(database.file.with_name(database.file.name + beside), FILE_MODE)
    except OSError as error:
        raise Internal(f"the data directory {data_dir} cannot be made: {error.strerror}") from error
    return database


def _missing(connection: Connection, metadata: MetaData) -> list[tuple[Table, Column[Any]]]:
    """Columns that the tables of a database do not have, those of missing tables included."""
    schema = inspect_schema(connection)
    known = {name: {column["name"] for column in schema.get_columns(name)} for name in schema.get_table_names()}
    return [
        (table, column)
        for table in metadata.sorted_tables
        for column in table.columns
        if column.name not in known.get(table.name, set())
    ]


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise InvalidRequest("the database's URL cannot be read; postgresql://user@host/name is one") from None
    backend = parsed.get_backend_name()
    if backend in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    if backend == "sqlite":
        return parsed
    raise InvalidRequest(f"the registry keeps its catalogue in SQLite or PostgreSQL, not in {backend}")


def _sqlite(file: SqliteFile) -> Engine:
    engine = create_engine("sqlite://", creator=file.connect, poolclass=NullPool, hide_parameters=True)
    event.listen(engine, "begin", _begin)
    return engine


def _postgresql(url: URL) -> Engine:
    options: dict[str, Any] = {
        "connect_timeout": CONNECT_SECONDS,
        "tcp_user_timeout": _DEAD_PEER_MS,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 2,
        "client_encoding": "utf8",  # without it texts of a database in SQL_ASCII are bytes
        "options": "-c timezone=UTC -c idle_in_transaction_session_timeout=60000",
    }
    try:
        return create_engine(
            url,
            poolclass=NullPool,
            hide_parameters=True,  # values stay out of errors, and so out of logs
            connect_args=options | dict(url.query),
        )
    except (ModuleNotFoundError, NoSuchModuleError):
        raise InvalidRequest("PostgreSQL needs its driver: pip install 'ipet-serve[postgres]'") from None


def _begin(connection: Connection) -> None:
    options = connection.get_execution_options()
    seconds = options.get(_WAIT)
    if options.get("isolation_level") == "AUTOCOMMIT":
        return
    if seconds is None:
        connection.exec_driver_sql("BEGIN")
    else:
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {round(1000 * seconds)}")
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _lock_postgresql(connection: Connection, seconds: float, is_bounded: bool) -> None:
    """Wait for the one writer's lock; statements of a bounded transaction take no longer either."""
    milliseconds = max(1, round(1000 * seconds))
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {milliseconds}")
    if is_bounded:
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {milliseconds}")
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITER_LOCK})")


def _of_postgresql(error: BaseException) -> ServiceError:
    state = getattr(error, "sqlstate", None)
    if state is None or state.startswith(_GONE):
        return unreachable(first_line(error))
    if state.startswith(_NO_ROOM):
        return StorageFull(f"the registry's database is full: {first_line(error)}")
    if state.startswith(_BUSY):
        return busy()
    return Internal(f"the registry's catalogue failed: {first_line(error)}")
