"""A real PostgreSQL of the tests' own: started once, a new database for each test, stopped and started at will.

Its programs are the system's or those that the package pgserver brings; without either the tests are skipped. It
listens on a Unix socket only and never runs as root, which it refuses.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

START_SECONDS = 90.0
MEMORY = Path("/dev/shm")  # where a new database, some 300 files, takes a third of the time that it takes on a disk
MEMORY_BYTES = 2**31  # that have to be free there
USERS = ("postgres", "nobody")  # who it runs as where the tests are root


class Postgres:
    """One server; `url(name)` is a database's address."""

    def __init__(self, programs: Path, directory: Path, user: str | None) -> None:
        self._programs = programs
        self._directory = directory
        self._user = user
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        initdb = [programs / "initdb", "-D", directory / "data", "-U", "postgres", "--auth=trust", "--no-sync"]
        subprocess.run([*initdb, "-E", "UTF8", "--locale=C"], user=user, check=True, stdout=subprocess.DEVNULL)

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self._directory}"

    def new_database(self, encoding: str = "UTF8") -> str:
        """The URL of an empty database."""
        import psycopg

        self._databases += 1
        name = f"test{self._databases}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Remove it, whoever is connected still; goes with the server where that has been stopped."""
        import psycopg

        if self._process is None:
            return
        name = url.partition("?")[0].rpartition("/")[2]
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def start(self) -> None:
        options = ["-c", "listen_addresses=", "-c", "fsync=off", "-k", str(self._directory)]
        command = [str(self._programs / "postgres"), "-D", str(self._directory / "data"), *options]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(command, user=self._user, stdout=log, stderr=log, cwd=self._directory)
        deadline = time.monotonic() + START_SECONDS
        ready = [str(self._programs / "pg_isready"), "-q", "-h", str(self._directory)]
        while subprocess.run(ready).returncode:
            assert self._process.poll() is None, (self._directory / "log").read_text()
            assert time.monotonic() < deadline, "PostgreSQL does not get ready"
            time.sleep(0.05)

    def stop(self) -> None:
        """Breaks every connection off, at once."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(START_SECONDS)
            self._process = None


def _programs() -> Path | None:
    found = shutil.which("initdb")
    pgserver = find_spec("pgserver")
    places = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if pgserver is not None and pgserver.origin is not None:
        places.append(Path(pgserver.origin).parent / "pginstall" / "bin")
    return next((place for place in places if (place / "postgres").exists() and (place / "pg_isready").exists()), None)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    pytest.importorskip("psycopg", reason="no psycopg: pip install 'ipet-serve[postgres]'")
    programs = _programs()
    if programs is None:
        pytest.skip("no PostgreSQL here: neither initdb nor the package pgserver")
    user = None
    is_roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MEMORY_BYTES
    place = MEMORY if is_roomy else Path("/tmp")  # a socket's path is at most 107 bytes
    directory = Path(tempfile.mkdtemp(prefix="ipet-pg-", dir=place))
    if os.geteuid() == 0:
        known = {entry.pw_name for entry in pwd.getpwall()}
        user = next((name for name in USERS if name in known), None)
        if user is None:
            pytest.skip(f"PostgreSQL does not run as root, and there is none of the users {', '.join(USERS)}")
        shutil.chown(directory, user)
    server = Postgres(programs, directory, user)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def postgres(postgres_server: Postgres) -> Iterator[Postgres]:
    """The server, running; started again if a test has stopped it."""
    yield postgres_server
    if postgres_server._process is None:
        postgres_server.start()


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """An empty database of the test's own."""
    url = postgres.new_database()
    yield url
    postgres.drop_database(url)
