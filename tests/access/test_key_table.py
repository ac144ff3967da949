"""Keys at rest: hashed, never deleted, every change seen by other processes."""

import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.access.key_table import KeyTable
from service.access.keys import Grant, KeyState, Rate, Scope
from service.database import open_database
from service.errors import InvalidRequest
from service.settings import Settings

GRANT = Grant(
    frozenset({Scope.INFER, Scope.READ}),
    adapters=("acme-*", "shared"),
    rate=Rate(10, 1),
    concurrency=4,
    expires=datetime(2099, 1, 1, tzinfo=UTC),
    domain="acme",
)


def opened(settings: Settings) -> closing[KeyTable]:
    return closing(KeyTable(open_database(settings.data_dir, settings.database_url)))


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(tmp_path: Path, request: pytest.FixtureRequest) -> Settings:
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else ""
    return Settings(data_dir=tmp_path, database_url=url)


@pytest.fixture
def table(settings: Settings) -> Iterator[KeyTable]:
    with opened(settings) as table:
        yield table


def test_a_key_comes_back_as_it_was_made(table: KeyTable, settings: Settings) -> None:
    key, token = table.create("night job", GRANT)
    with opened(settings) as other:
        assert other.all_keys() == [key]
    assert key.grant == GRANT
    assert key.opens_with(token.secret)
    assert abs(datetime.now(UTC) - key.created) < timedelta(minutes=1)
    plain, _ = table.create("", Grant(frozenset({Scope.ADMIN})))
    assert table.all_keys() == [key, plain]


def test_the_secret_is_nowhere_on_disk(tmp_path: Path) -> None:
    with opened(Settings(data_dir=tmp_path)) as table:
        _, token = table.create("", GRANT)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert token.id.encode() in written
    assert token.secret.encode() not in written


def test_revocation_is_final(table: KeyTable) -> None:
    key, _ = table.create("", GRANT)
    revoked = table.revoke(key.id)
    assert revoked.state(datetime.now(UTC)) is KeyState.REVOKED
    before = table.stamp()
    assert table.revoke(key.id) == revoked
    assert table.stamp() == before
    assert table.all_keys() == [revoked]
    with pytest.raises(InvalidRequest, match="there is no key 000000000000"):
        table.revoke("000000000000")


def test_every_change_moves_the_revision(table: KeyTable, settings: Settings) -> None:
    with opened(settings) as other:
        seen = [other.stamp()]
        keys = [table.create("", GRANT)[0] for _ in range(3)]
        seen.append(other.stamp())
        for key in keys:
            table.revoke(key.id)
            seen.append(other.stamp())
    assert len(set(seen)) == len(seen)


def test_keys_made_at_once_are_all_there(table: KeyTable, settings: Settings) -> None:
    def make() -> None:
        with opened(settings) as mine:
            for _ in range(5):
                mine.create("", GRANT)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(table.all_keys()) == table.stamp()[0] == 20


def test_looking_waits_for_no_writer(table: KeyTable, settings: Settings) -> None:
    table.create("", GRANT)
    with open_database(settings.data_dir, settings.database_url).write():
        assert len(table.all_keys()) == table.stamp()[0] == 1


def test_bad_labels_leave_nothing(table: KeyTable) -> None:
    with pytest.raises(InvalidRequest):
        table.create("two\nlines", GRANT)
    assert table.all_keys() == []
