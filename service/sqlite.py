"""The file of a SQLite database in WAL mode, and what its errors mean."""

import shutil
import sqlite3
import threading
import weakref
from pathlib import Path
from urllib.parse import quote

from service.errors import Internal, NotReady, RegistryUnavailable, ServiceError, StorageFull

BUSY_SECONDS = 30.0  # how long a writer waits for another process
LOG_PAGES = 256  # 1 MiB of the write-ahead log, then it is written over

# What SQLite says of a file that is no longer the database it was.
_LOST = frozenset(
    {
        *(sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB),
        *(sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_PROTOCOL),
    }
)


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
            raise unreachable(f"{self._path} is another file than the one that was opened")
        return _connect(f"file:{quote(str(self._path))}?mode=rw")

    def translate(self, error: BaseException) -> ServiceError:
        """What SQLite's error means to the service."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code
        if code == sqlite3.SQLITE_BUSY:
            return busy()
        unwritten = code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
        if code == sqlite3.SQLITE_FULL or (unwritten and self._is_full()):
            return StorageFull(f"the disk of the data directory is full: {error}")
        if code in _LOST or (code == sqlite3.SQLITE_ERROR and "no such" in str(error)):  # tables that were there
            return unreachable(first_line(error))
        return Internal(f"the registry's catalogue failed: {error}")

    def _is_full(self) -> bool:
        try:
            return shutil.disk_usage(self._path.parent).free < 2**16
        except OSError:  # gone with its directory
            return False

    def close(self) -> None:
        with self._lock:
            if self._kept is not None:
                self._kept.close()
            self._kept = None

    def _inode_now(self) -> tuple[int, int]:
        try:
            found = self._path.stat()
        except OSError as error:
            raise unreachable(f"{self._path}: {error.strerror}") from error
        if self._inode[1] and not found.st_size:
            raise unreachable(f"{self._path} is empty")
        return found.st_dev, found.st_ino


def _connect(uri: str) -> sqlite3.Connection:
    """Transactions begin where `_begin` says so."""
    connection = sqlite3.connect(uri, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=True)
    try:
        for pragma in ("synchronous=FULL", "foreign_keys=ON", "secure_delete=ON", f"wal_autocheckpoint={LOG_PAGES}"):
            connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


def busy() -> NotReady:
    return NotReady("another process is writing to the registry; try again", retry_after=1.0)


def unreachable(reason: str) -> RegistryUnavailable:
    return RegistryUnavailable(
        f"the registry's database cannot be used: {reason}; what is known is served, nothing can be "
        "changed until it is back",
        retry_after=2.0,
    )


def first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
