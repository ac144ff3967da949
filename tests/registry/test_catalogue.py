import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, inspect, select

from service import database
from service.database import Database
from service.errors import Internal, InvalidRequest, NotReady, RegistryUnavailable
from service.registry import audit
from service.registry.catalogue import Catalogue


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'registry.sqlite'}"
    found: str = request.getfixturevalue("postgres_url")
    return found


@pytest.fixture
def catalogue(url: str) -> Catalogue:
    return Catalogue(Database(url))


def test_numbers_and_digests_survive_deletion(catalogue: Catalogue) -> None:
    with catalogue.write() as transaction:
        assert [transaction.add_version("a", f"d{i}", b"{}", 1) for i in range(3)] == [1, 2, 3]
        transaction.set_alias("a", "live", 3)
        transaction.delete_adapter("a")
    with catalogue.write() as transaction:
        assert transaction.adapter("a").versions == ()
        assert transaction.adapter("a").aliases == {}
        assert transaction.adapters() == []
        assert transaction.seen(["d1", "d2", "d9"]) == {"d1": False, "d2": False}
        assert (transaction.last_version("a"), transaction.last_version("b")) == (3, 0)
        assert not transaction.is_referenced("d1")
        assert transaction.deleted_since(datetime.now(UTC) - timedelta(minutes=1)) == {"d0", "d1", "d2"}
        assert transaction.deleted_since(datetime.now(UTC) + timedelta(minutes=1)) == set()
        assert transaction.add_version("a", "d1", b"{}", 1) == 4
        assert transaction.seen(["d1"]) == {"d1": True}


def test_rows_come_back_as_written(catalogue: Catalogue) -> None:
    with catalogue.write() as transaction:
        transaction.add_version("b", "d1", b"\x00\xff", 7)
        transaction.add_version("a", "d2", b"{}", 2**33)
        transaction.add_version("b", "d3", b"{}", 9)
        transaction.set_alias("b", "live", 1)
        transaction.set_alias("b", "live", 2)
        first, second = transaction.adapters()
        assert [first, second] == [transaction.adapter("a"), transaction.adapter("b")]
    assert (first.name, second.name, second.aliases) == ("a", "b", {"live": 2})
    assert [row.version for row in second.versions] == [1, 2]
    assert (second.versions[0].config, first.versions[0].weights_bytes) == (b"\x00\xff", 2**33)
    assert abs(datetime.now(UTC) - second.versions[0].created) < timedelta(minutes=1)


def test_the_revision_tells_what_changed(catalogue: Catalogue) -> None:
    with catalogue.write() as transaction:
        for name in ("a", "b", "c"):
            transaction.add_version(name, "d", b"{}", 1)
        before = transaction.revision()
    with catalogue.read() as transaction:
        assert transaction.changed_since(before) == []
    with catalogue.write() as transaction:
        transaction.set_alias("b", "live", 1)
        transaction.delete_adapter("c")
    with catalogue.read() as transaction:
        assert transaction.revision() > before
        changed = {rows.name: rows for rows in transaction.changed_since(before)}
    assert changed.keys() == {"b", "c"}
    assert (changed["b"].aliases, changed["c"].versions) == ({"live": 1}, ())


def test_history_says_who_did_what(catalogue: Catalogue) -> None:
    with catalogue.write("key-1") as transaction:
        transaction.add_version("a", "d1", b"{}", 1)
        transaction.set_alias("a", "live", 1)
    with catalogue.write("key-2") as transaction:
        transaction.add_version("a", "d2", b"{}", 1)
        transaction.set_alias("a", "live", 2)
        transaction.add_version("other", "d3", b"{}", 1)
    with catalogue.write() as transaction:
        transaction.delete_version("a", 1)
        transaction.delete_alias("a", "live")
        transaction.delete_adapter("a")
    with catalogue.read() as transaction:
        events = audit.history(transaction.connection, "a", 100)
        assert [(e.actor, e.action.value, e.version, e.alias, e.previous) for e in reversed(events)] == [
            ("key-1", "upload", 1, None, None),
            ("key-1", "alias", 1, "live", None),
            ("key-2", "upload", 2, None, None),
            ("key-2", "alias", 2, "live", 1),
            ("anonymous", "delete_version", 1, None, None),
            ("anonymous", "delete_alias", None, "live", 2),
            ("anonymous", "delete_adapter", None, None, None),
        ]
        assert abs(datetime.now(UTC) - events[0].at) < timedelta(minutes=1)
        pages = [audit.history(transaction.connection, "a", 3)]
        while len(pages[-1]) == 3:
            pages.append(audit.history(transaction.connection, "a", 3, pages[-1][-1].id))
    assert [event for page in pages for event in page] == events


def test_an_error_rolls_everything_back(catalogue: Catalogue) -> None:
    def fail() -> None:
        with catalogue.write() as transaction:
            transaction.add_version("a", "d1", b"{}", 1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with catalogue.read() as transaction:
        assert transaction.seen(["d1"]) == {}
        assert transaction.revision() == 0
        assert audit.history(transaction.connection, "a", 10) == []


def test_aliases_point_to_versions_that_exist(catalogue: Catalogue) -> None:
    with pytest.raises(Internal, match=r"(?i)foreign key"), catalogue.write() as transaction:
        transaction.set_alias("a", "live", 1)


def test_writers_wait_for_each_other(url: str) -> None:
    numbers: list[int] = []
    known = [Catalogue(Database(url)) for _ in range(4)]

    def add(writer: int) -> None:
        for i in range(5):
            with known[writer].write() as transaction:
                numbers.append(transaction.add_version("a", f"{writer}-{i}", b"{}", 1))

    threads = [threading.Thread(target=add, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 21))
    with known[0].read() as transaction:
        assert len(transaction.adapter("a").versions) == 20
        assert transaction.revision() == 20


def test_readers_see_one_moment_and_wait_for_nobody(catalogue: Catalogue) -> None:
    with catalogue.write() as writing:
        writing.add_version("a", "d1", b"{}", 1)
        with catalogue.read() as reading:
            assert reading.adapters() == []
    with catalogue.read() as reading:
        assert len(reading.adapters()) == 1
        with catalogue.write() as writing:
            writing.delete_adapter("a")
        assert len(reading.adapters()) == 1


def test_a_writer_that_never_ends_is_reported(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    known, other = Catalogue(Database(url)), Catalogue(Database(url))
    with known.write(), pytest.raises(NotReady, match="another process is writing"), other.write():
        pass


def test_each_catalogue_has_an_identity_of_its_own(url: str, tmp_path: Path) -> None:
    catalogues = [Catalogue(Database(one)) for one in (url, url, f"sqlite:///{tmp_path / 'other.sqlite'}")]
    identities = []
    for catalogue in catalogues:
        with catalogue.read() as transaction:
            identities.append(transaction.identity())
    assert identities[0] == identities[1] != identities[2]


def test_durable_settings(tmp_path: Path) -> None:
    with Catalogue(Database(f"sqlite:///{tmp_path / 'registry.sqlite'}")).write() as transaction:
        pragma = transaction.connection.exec_driver_sql
        assert pragma("PRAGMA journal_mode").scalar() == "wal"
        assert pragma("PRAGMA synchronous").scalar() == 2  # FULL
        assert pragma("PRAGMA foreign_keys").scalar() == 1


def test_tables_of_an_older_release_get_what_was_added(url: str) -> None:
    old, new = MetaData(), MetaData()
    Table("things", old, Column("id", Integer, primary_key=True))
    added = Column("size", Integer, nullable=False, server_default="7", index=True)
    things = Table("things", new, Column("id", Integer, primary_key=True), added)
    Table("others", new, Column("id", Integer, primary_key=True))
    known = Database(url)
    known.prepare(old)
    with known.write() as connection:
        connection.exec_driver_sql("INSERT INTO things VALUES (1)")
    for _ in range(2):
        known.prepare(new)
    with known.read() as connection:
        assert connection.execute(select(things)).one() == (1, 7)
        schema = inspect(connection)
        assert set(schema.get_table_names()) == {"others", "things", "schema_version"}
        assert [index["column_names"] for index in schema.get_indexes("things")] == [["size"]]


def test_preparing_what_is_there_writes_nothing(url: str) -> None:
    known = Catalogue(Database(url))
    with known.write():  # would keep every other writer out
        Catalogue(Database(url))


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "registry.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(RegistryUnavailable, match="not a database"):
        Catalogue(Database(f"sqlite:///{path}"))


@pytest.mark.parametrize("bad", ["nonsense", "mysql://somewhere/db", "postgresql"])
def test_other_databases_are_refused(bad: str) -> None:
    with pytest.raises(InvalidRequest, match=r"(?i)postgresql"):
        Database(bad)


def test_passwords_are_not_shown() -> None:
    pytest.importorskip("psycopg")
    assert "secret" not in str(Database("postgresql://user:secret@nowhere/db"))
