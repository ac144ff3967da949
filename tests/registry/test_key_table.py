"""Keys at rest: hashed, never deleted, every change seen by other processes."""

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.errors import InvalidRequest
from service.registry.catalogue import open_catalogue
from service.registry.key_table import KeyTable
from service.registry.keys import Grant, KeyState, Rate, Scope
from service.settings import Settings

GRANT = Grant(
    frozenset({Scope.INFER, Scope.READ}),
    adapters=("acme-*", "shared"),
    rate=Rate(10, 1),
    concurrency=4,
    expires=datetime(2099, 1, 1, tzinfo=UTC),
)


@pytest.fixture
def table(tmp_path: Path) -> KeyTable:
    return another(tmp_path)


def another(directory: Path) -> KeyTable:
    return KeyTable(open_catalogue(Settings(data_dir=directory)))


def test_a_key_comes_back_as_it_was_made(table: KeyTable, tmp_path: Path) -> None:
    key, token = table.create("night job", GRANT)
    assert another(tmp_path).all_keys() == [key]
    assert key.grant == GRANT
    assert key.opens_with(token.secret)
    assert abs(datetime.now(UTC) - key.created) < timedelta(minutes=1)
    plain, _ = table.create("", Grant(frozenset({Scope.ADMIN})))
    assert table.all_keys() == [key, plain]


def test_the_secret_is_nowhere_on_disk(table: KeyTable, tmp_path: Path) -> None:
    _, token = table.create("", GRANT)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert token.id.encode() in written
    assert token.secret.encode() not in written


def test_revocation_is_final(table: KeyTable) -> None:
    key, _ = table.create("", GRANT)
    revoked = table.revoke(key.id)
    assert revoked.state(datetime.now(UTC)) is KeyState.REVOKED
    before = table.revision()
    assert table.revoke(key.id) == revoked
    assert table.revision() == before
    assert table.all_keys() == [revoked]
    with pytest.raises(InvalidRequest, match="there is no key 000000000000"):
        table.revoke("000000000000")


def test_every_change_moves_the_revision(table: KeyTable, tmp_path: Path) -> None:
    other = another(tmp_path)
    seen = [other.revision()]
    keys = [table.create("", GRANT)[0] for _ in range(3)]
    seen.append(other.revision())
    for key in keys:
        table.revoke(key.id)
        seen.append(other.revision())
    assert seen == sorted(set(seen))


def test_keys_made_at_once_are_all_there(tmp_path: Path) -> None:
    another(tmp_path)

    def make() -> None:
        table = another(tmp_path)
        for _ in range(5):
            table.create("", GRANT)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(another(tmp_path).all_keys()) == another(tmp_path).revision() == 20


def test_looking_waits_for_no_writer(table: KeyTable, tmp_path: Path) -> None:
    table.create("", GRANT)
    catalogue = open_catalogue(Settings(data_dir=tmp_path))
    with catalogue.write():
        assert len(table.all_keys()) == table.revision() == 1


def test_bad_labels_leave_nothing(table: KeyTable) -> None:
    with pytest.raises(InvalidRequest):
        table.create("two\nlines", GRANT)
    assert table.all_keys() == []
