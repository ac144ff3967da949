"""The SQL database of the service: SQLite in WAL mode, or PostgreSQL by URL; rooms bring their own tables.

Only one writer runs at a time, across processes and machines: SQLite's own write lock, an advisory lock of
PostgreSQL. Readers see one snapshot and wait for nobody.
"""

import logging
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Column, Connection, Engine, MetaData, Table, create_engine, event, make_url
from sqlalchemy import inspect as inspect_schema
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import CreateColumn

from service.errors import Internal, InvalidRequest, NotReady, RegistryUnavailable, ServiceError, StorageFull

DATABASE_FILE = "registry.sqlite"
FILL = "fill"  # in a column's `info`: the statement that fills it for the rows there are when it is added
BUSY_SECONDS = 30.0  # how long a writer waits for another process
CONNECT_SECONDS = 3
_DEAD_PEER_MS = 10_000  # after so long without an acknowledgement a connection counts as lost
_WRITER_LOCK = 0x69706574  # "ipet": the advisory lock of PostgreSQL's one writer
_READ_ONLY = "ipet_read_only"
_DIRECTORY_MODE, _FILE_MODE, _OTHERS = 0o700, 0o600, 0o077

# Classes and codes of SQLSTATE, see PostgreSQL's appendix A.
_GONE = ("08", "57P", "25P03")
_NO_ROOM = ("53100", "53200")
_BUSY = ("55P03", "40001", "40P01")

_log = logging.getLogger(__name__)


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
        self._engine = _sqlite(self._url) if self.is_sqlite else _postgresql(self._url)

    def __str__(self) -> str:
        return str(self.file.resolve()) if self.file else self._url.render_as_string(hide_password=True)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """The one write transaction there is; committed and durable at its end, rolled back on an error.

        Raises:
            StorageFull: no room left. NotReady: another process held the catalogue for too long.
            RegistryUnavailable: the database cannot be reached; after a commit that broke off, nobody knows
                whether it happened.
        """
        with self._translated(), self._engine.begin() as connection:
            if not self.is_sqlite:
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = {round(BUSY_SECONDS * 1000)}")
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITER_LOCK})")
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one moment of the database. Raises as `write` does."""
        options: dict[str, Any] = {_READ_ONLY: True}
        if not self.is_sqlite:
            options["isolation_level"] = "REPEATABLE READ"
        with self._translated(), self._engine.connect() as plain:
            connection = plain.execution_options(**options)
            with connection.begin():
                yield connection

    def prepare(self, metadata: MetaData) -> None:
        """Make the tables and columns that are missing, of a new database or one that an older release left.

        Where nothing is missing, nothing is written. A column that was added later is nullable or has a
        `server_default`, which the rows that are there take.
        """
        with self.read() as connection:
            if not _missing(connection, metadata):
                return
        with self.write() as connection:  # another process may have been first
            metadata.create_all(connection)
            for table, column in _missing(connection, metadata):
                definition = CreateColumn(column).compile(dialect=connection.dialect)
                connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {definition}")
                if statement := column.info.get(FILL):
                    connection.exec_driver_sql(statement)
                for index in table.indexes:
                    index.create(connection, checkfirst=True)

    def is_begun(self) -> bool:
        """Whether anything was ever kept here; looking makes nothing."""
        if self.file is not None and not (self.file.is_file() and self.file.stat().st_size):
            return False
        with self.read() as connection:
            return bool(inspect_schema(connection).get_table_names())

    def require_begun(self) -> None:
        """Raise InvalidRequest where nothing was ever kept here."""
        if not self.is_begun():
            raise InvalidRequest(f"there is no registry in {self}; `ipet serve` and `ipet keys create` begin one")

    def close(self) -> None:
        """Nothing is held between transactions; for whoever wants to say that it is done."""
        self._engine.dispose()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise self._translate(error.orig or error) from error
        except sqlite3.Error as error:  # from `_configure`
            raise self._translate(error) from error

    def _translate(self, error: BaseException) -> ServiceError:
        return _of_sqlite(error, self._url) if self.is_sqlite else _of_postgresql(error)


def database_of(data_dir: Path, url: str = "") -> Database:
    """The database of a data directory: SQLite in it, unless a URL is given. Makes nothing yet."""
    return Database(url or f"sqlite:///{data_dir / DATABASE_FILE}")


def open_database(data_dir: Path, url: str = "") -> Database:
    """As `database_of`, in a directory that is made where it is missing, and closed to others."""
    database = database_of(data_dir, url)
    try:
        make_private(data_dir)
        if database.file is not None:
            database.file.touch(_FILE_MODE)
            for beside in ("", "-wal", "-shm"):  # new ones get the mode of the first from SQLite
                _make_private(database.file.with_name(database.file.name + beside), _FILE_MODE)
    except OSError as error:
        raise Internal(f"the data directory {data_dir} cannot be made: {error.strerror}") from error
    return database


def make_private(directory: Path, *, below: bool = False) -> None:
    """Make a directory that nobody else on this machine can look into.

    Args:
        below: close also what an earlier release left open in it.
    """
    directory.mkdir(_DIRECTORY_MODE, parents=True, exist_ok=True)
    if below and directory.stat().st_mode & _OTHERS:
        for path in directory.rglob("*"):
            _make_private(path, _DIRECTORY_MODE if path.is_dir() else _FILE_MODE)
    _make_private(directory, _DIRECTORY_MODE)


def _make_private(path: Path, mode: int) -> None:
    try:
        if path.stat().st_mode & _OTHERS:
            path.chmod(mode)
    except FileNotFoundError:
        pass
    except PermissionError:
        _log.warning("other users of this machine can read %s, which is not this user's to close", path)


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


def _sqlite(url: URL) -> Engine:
    engine = create_engine(url, poolclass=NullPool, connect_args={"timeout": BUSY_SECONDS}, hide_parameters=True)
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    return engine


def _postgresql(url: URL) -> Engine:
    options: dict[str, Any] = {
        "connect_timeout": CONNECT_SECONDS,
        "tcp_user_timeout": _DEAD_PEER_MS,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 2,
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


def _configure(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where `_begin` says so
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    read_only = connection.get_execution_options().get(_READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _of_sqlite(error: BaseException, url: URL) -> ServiceError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code
    if code == sqlite3.SQLITE_BUSY:
        return _busy()
    unwritten = code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
    if code == sqlite3.SQLITE_FULL or (unwritten and _is_full(Path(url.database or "."))):
        return StorageFull(f"the disk of the data directory is full: {error}")
    if unwritten:
        return _unreachable(error)
    return Internal(f"the registry's catalogue failed: {error}")


def _of_postgresql(error: BaseException) -> ServiceError:
    state = getattr(error, "sqlstate", None)
    if state is None or state.startswith(_GONE):
        return _unreachable(error)
    if state.startswith(_NO_ROOM):
        return StorageFull(f"the registry's database is full: {_first_line(error)}")
    if state.startswith(_BUSY):
        return _busy()
    return Internal(f"the registry's catalogue failed: {_first_line(error)}")


def _busy() -> NotReady:
    return NotReady("another process is writing to the registry; try again", retry_after=1.0)


def _unreachable(error: BaseException) -> RegistryUnavailable:
    return RegistryUnavailable(
        f"the registry's database cannot be used: {_first_line(error)}; what is known is served, nothing can be "
        "changed until it is back",
        retry_after=2.0,
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _is_full(path: Path) -> bool:
    return shutil.disk_usage(path.parent).free < 2**16
