import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.errors import Internal, NotReady
from service.registry import catalogue
from service.registry.catalogue import Catalogue


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.sqlite"


def test_numbers_and_digests_survive_deletion(path: Path) -> None:
    with Catalogue(path).write() as transaction:
        assert [transaction.add_version("a", f"d{i}", b"{}", 1) for i in range(3)] == [1, 2, 3]
        transaction.set_alias("a", "live", 3)
        transaction.delete_versions("a", [1, 2, 3])
    with Catalogue(path).write() as transaction:
        assert transaction.adapter("a").versions == ()
        assert transaction.adapter("a").aliases == {}
        assert transaction.adapters() == []
        assert transaction.was_seen("a", "d1")
        assert not transaction.was_seen("b", "d1")
        assert not transaction.is_referenced("d1")
        assert transaction.add_version("a", "d1", b"{}", 1) == 4
        assert transaction.referenced() == {"d1"}


def test_rows_come_back_as_written(path: Path) -> None:
    with Catalogue(path).write() as transaction:
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
    assert datetime.now(UTC) - second.versions[0].created < timedelta(minutes=1)


def test_an_error_rolls_everything_back(path: Path) -> None:
    known = Catalogue(path)

    def fail() -> None:
        with known.write() as transaction:
            transaction.add_version("a", "d1", b"{}", 1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with known.write() as transaction:
        assert not transaction.was_seen("a", "d1")


def test_aliases_point_to_versions_that_exist(path: Path) -> None:
    with pytest.raises(Internal, match="FOREIGN KEY"), Catalogue(path).write() as transaction:
        transaction.set_alias("a", "live", 1)


def test_writers_wait_for_each_other(path: Path) -> None:
    numbers: list[int] = []

    def add(writer: int) -> None:
        for i in range(5):
            with Catalogue(path).write() as transaction:
                numbers.append(transaction.add_version("a", f"{writer}-{i}", b"{}", 1))

    Catalogue(path)
    threads = [threading.Thread(target=add, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert numbers == list(range(1, 21))


def test_a_writer_that_never_ends_is_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "BUSY_SECONDS", 0.05)
    known = Catalogue(path)
    with (
        known.write(),
        pytest.raises(NotReady, match="another process is writing"),
        Catalogue(path).write(),
    ):
        pass


def test_durable_settings(path: Path) -> None:
    with Catalogue(path).write() as transaction:
        pragma = transaction.connection.exec_driver_sql
        assert pragma("PRAGMA journal_mode").scalar() == "wal"
        assert pragma("PRAGMA synchronous").scalar() == 2  # FULL
        assert pragma("PRAGMA foreign_keys").scalar() == 1


def test_a_file_that_is_no_database(path: Path) -> None:
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(Internal, match="not a database"):
        Catalogue(path)
