"""The SQL database of the service: SQLite in WAL mode, or PostgreSQL by URL; rooms bring their own tables.

Only one writer runs at a time, across processes and machines: SQLite's own write lock, an advisory lock of
PostgreSQL. Readers see one snapshot and wait for nobody.
"""

import logging
import math
import shutil
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Column, Connection, Engine, MetaData, Table, create_engine, event, make_url
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

DATABASE_FILE = "registry.sqlite"
FILL = "fill"  # in a column's `info`: the statement that fills it for the rows there are when it is added
BUSY_SECONDS = 30.0  # how long a writer waits for another process
CONNECT_SECONDS = 3
_DEAD_PEER_MS = 10_000  # after so long without an acknowledgement a connection counts as lost
_WRITER_LOCK = 0x69706574  # "ipet": the advisory lock of PostgreSQL's one writer
_WAIT = "ipet_wait"  # seconds, of a transaction that writes
_LOG_PAGES = 256  # 1 MiB of the write-ahead log, then it is written over
_DIRECTORY_MODE, _FILE_MODE, _OTHERS = 0o700, 0o600, 0o077


# What SQLite says of a file that is no longer the database it was.
_LOST = frozenset(
    {
        *(sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB),
        *(sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_PROTOCOL),
    }
)
# Classes and codes of SQLSTATE, see PostgreSQL's appendix A. Gone: the server, the database, its tables.
_GONE = ("08", "57P", "25P03", "28", "3D", "58", "XX", "42P01", "42501")
_NO_ROOM = ("53100", "53200")
_BUSY = ("55P03", "40001", "40P01", "57014")

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
        self._kept = SqliteFile(self.file) if self.file else None
        self._engine = _sqlite(self._kept) if self._kept else _postgresql(self._url)

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
                    yield connection
        except DBAPIError as error:
            raise self._translate(error.orig or error) from error

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

    def _translate(
        self, error: BaseException, deadline: Deadline | None = None, is_committing: bool = False
    ) -> ServiceError:
        told = _of_sqlite(error, self._url) if self.is_sqlite else _of_postgresql(error)
        if isinstance(told, NotReady) and deadline is not None and not deadline.left:
            return DeadlineExceeded(f"{told.detail}; the time for this change is over, and nothing was changed")
        if isinstance(told, RegistryUnavailable) and is_committing and not self.is_sqlite:
            return RegistryUnavailable(
                f"the database broke off while the change was committed ({_first_line(error)}): whether it was made "
                "can be seen once the database is back; until then what is known is served",
                retry_after=2.0,
            )
        return told


class SqliteFile:
    """The file of a SQLite database, open as long as somebody may use it.

    A connection is kept: the last one to close would remove the write-ahead log, which even a reader has to make
    anew, and a full disk has no room for that. A file that is not the one kept open, or is gone, is nobody's.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._lock = threading.Lock()
        self._kept: sqlite3.Connection | None = None
        self._inode = (0, 0)

    def connect(self) -> sqlite3.Connection:
        """A new connection. Raises RegistryUnavailable: the file was removed or replaced since the first one."""
        with self._lock:
            if self._kept is None:
                kept = _connect(f"file:{quote(str(self._path))}?mode=rwc")
                weakref.finalize(self, kept.close)
                kept.execute("PRAGMA journal_mode=WAL")
                kept.execute("SELECT count(*) FROM sqlite_master").fetchone()  # opens the log
                self._inode = (0, 0)
                self._inode, self._kept = self._inode_now(), kept
        if self._inode_now() != self._inode:
            raise _unreachable(f"{self._path} is another file than the one that was opened")
        return _connect(f"file:{quote(str(self._path))}?mode=rw")

    def close(self) -> None:
        with self._lock:
            if self._kept is not None:
                self._kept.close()
            self._kept = None

    def _inode_now(self) -> tuple[int, int]:
        try:
            found = self._path.stat()
        except OSError as error:
            raise _unreachable(f"{self._path}: {error.strerror}") from error
        if self._inode[1] and not found.st_size:
            raise _unreachable(f"{self._path} is empty")
        return found.st_dev, found.st_ino


def _connect(uri: str) -> sqlite3.Connection:
    """Transactions begin where `_begin` says so."""
    connection = sqlite3.connect(uri, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=True)
    try:
        for pragma in ("synchronous=FULL", "foreign_keys=ON", f"wal_autocheckpoint={_LOG_PAGES}"):
            connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


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
    seconds = connection.get_execution_options().get(_WAIT)
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


def _of_sqlite(error: BaseException, url: URL) -> ServiceError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code
    if code == sqlite3.SQLITE_BUSY:
        return _busy()
    unwritten = code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
    if code == sqlite3.SQLITE_FULL or (unwritten and _is_full(Path(url.database or "."))):
        return StorageFull(f"the disk of the data directory is full: {error}")
    if code in _LOST or (code == sqlite3.SQLITE_ERROR and "no such" in str(error)):  # tables that were there
        return _unreachable(_first_line(error))
    return Internal(f"the registry's catalogue failed: {error}")


def _of_postgresql(error: BaseException) -> ServiceError:
    state = getattr(error, "sqlstate", None)
    if state is None or state.startswith(_GONE):
        return _unreachable(_first_line(error))
    if state.startswith(_NO_ROOM):
        return StorageFull(f"the registry's database is full: {_first_line(error)}")
    if state.startswith(_BUSY):
        return _busy()
    return Internal(f"the registry's catalogue failed: {_first_line(error)}")


def _busy() -> NotReady:
    return NotReady("another process is writing to the registry; try again", retry_after=1.0)


def _unreachable(reason: str) -> RegistryUnavailable:
    return RegistryUnavailable(
        f"the registry's database cannot be used: {reason}; what is known is served, nothing can be "
        "changed until it is back",
        retry_after=2.0,
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _is_full(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free < 2**16
    except OSError:  # gone with its directory
        return False
