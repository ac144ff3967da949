"""Whom a header belongs to: the environment's keys, the stored ones, and what changes among these."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.access.key_table import KeyTable
from service.access.keyring import MARKER, Keyring
from service.access.keys import Grant, Scope, Token
from service.database import open_database
from service.errors import Internal, NotReady, Unauthorized, UnknownAdapter
from service.settings import Settings

INFER = Grant(frozenset({Scope.INFER}))


def table_in(directory: Path) -> KeyTable:
    return KeyTable(open_database(directory))


@pytest.fixture
def table(tmp_path: Path) -> KeyTable:
    return table_in(tmp_path)


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    """Knows two environment keys for inference, one for administration, and whatever the table has."""
    settings = Settings(data_dir=tmp_path, inference_keys="one,two", admin_keys="root")  # type: ignore[arg-type]
    made = Keyring(settings)
    made.refresh()
    return made


@pytest.mark.parametrize("header", [None, "", "one", "Basic one", "Bearer", "Bearer  ", "Bearer three", "Bearer on"])
def test_no_good_key(keyring: Keyring, header: str | None) -> None:
    with pytest.raises(Unauthorized):
        keyring.caller(header)


def test_keys_of_the_environment(keyring: Keyring) -> None:
    assert keyring.closed
    for header, actor in {"Bearer one": "env:inference-1", "bearer two": "env:inference-2"}.items():
        caller = keyring.caller(header)
        assert caller.actor == actor
        assert caller.grant.scopes == {Scope.INFER, Scope.READ}
    admin = keyring.caller("Bearer root")
    assert (admin.actor, admin.grant.scopes) == ("env:admin-1", set(Scope))


def test_a_stored_key(keyring: Keyring, table: KeyTable) -> None:
    key, token = table.create("", INFER)
    with pytest.raises(Unauthorized):
        keyring.caller(f"Bearer {token}")
    keyring.refresh()
    caller = keyring.caller(f"Bearer {token}")
    assert (caller.actor, caller.grant) == (key.id, INFER)
    for forged in (Token(token.id, Token.mint().secret), Token(Token.mint().id, token.secret)):
        with pytest.raises(Unauthorized, match="not one of"):
            keyring.caller(f"Bearer {forged}")
    table.revoke(key.id)
    keyring.refresh()
    with pytest.raises(Unauthorized, match=f"{key.id} is revoked"):
        keyring.caller(f"Bearer {token}")


def test_an_expired_key_needs_no_look_to_end(keyring: Keyring, table: KeyTable) -> None:
    ends = datetime.now(UTC) + timedelta(seconds=0.5)
    _, token = table.create("", Grant(INFER.scopes, expires=ends))
    keyring.refresh()
    assert keyring.caller(f"Bearer {token}").grant.expires == ends
    while datetime.now(UTC) < ends:
        pass
    with pytest.raises(Unauthorized, match="expired"):
        keyring.caller(f"Bearer {token}")


def test_the_first_stored_key_closes_and_the_last_revocation_does_not_open(tmp_path: Path) -> None:
    keyring, table = Keyring(Settings(data_dir=tmp_path)), table_in(tmp_path)
    keyring.refresh()
    assert not keyring.closed
    key, _ = table.create("", INFER)
    keyring.refresh()
    assert keyring.closed
    table.revoke(key.id)
    keyring.refresh()
    assert keyring.closed


def test_nothing_is_open_before_the_keys_are_known(tmp_path: Path) -> None:
    keyring = Keyring(Settings(data_dir=tmp_path))
    with pytest.raises(NotReady):
        _ = keyring.closed
    with pytest.raises(NotReady):
        keyring.caller(f"Bearer {Token.mint()}")
    with pytest.raises(Unauthorized):
        keyring.caller("Bearer anything-else")


def test_what_was_known_holds_while_the_database_is_away(tmp_path: Path) -> None:
    table = table_in(tmp_path)
    _, token = table.create("", INFER)
    away = False

    class Flaky(KeyTable):
        def stamp(self) -> tuple[object, ...]:
            if away:
                raise Internal("the database is away")
            return super().stamp()

    settings = Settings(data_dir=tmp_path)
    keyring = Keyring(settings, lambda: Flaky(open_database(tmp_path)))

    async def look() -> None:
        await keyring.start()

    asyncio.run(look())
    away = True
    table.revoke(token.id)
    asyncio.run(look())
    assert keyring.caller(f"Bearer {token}").actor == token.id
    away = False
    asyncio.run(look())
    with pytest.raises(Unauthorized):
        keyring.caller(f"Bearer {token}")


def test_a_bound_key_knows_no_other_adapter(keyring: Keyring, table: KeyTable) -> None:
    _, token = table.create("", Grant(INFER.scopes, adapters=("acme-*",)))
    keyring.refresh()
    caller = keyring.caller(f"Bearer {token}")
    for reference in ("acme-events", "acme-events@2", "acme-events@canary"):
        caller.require_adapter(reference)
    for reference in ("other", "other@2", "acme", "", "@acme-x", "other@acme-x"):
        with pytest.raises(UnknownAdapter):
            caller.require_adapter(reference)


def forget_keys(directory: Path) -> None:
    with open_database(directory).write() as connection:
        connection.exec_driver_sql("DELETE FROM api_keys")


def replace_database(directory: Path) -> None:
    """Another database in its place, with as many keys of as many revisions."""
    move_database(directory)
    table_in(directory).create("", INFER)


def move_database(directory: Path) -> None:
    for path in directory.glob("registry.sqlite*"):
        path.rename(directory / f"moved-{path.name}")


def begin_database(directory: Path) -> None:
    """What a command that looked there once left behind: an empty table."""
    move_database(directory)
    table_in(directory)


def spoil_database(directory: Path) -> None:
    move_database(directory)
    (directory / "registry.sqlite").write_bytes(b"no database " * 1000)


def drop_table(directory: Path) -> None:
    with open_database(directory).write() as connection:
        connection.exec_driver_sql("DROP TABLE api_keys")


@pytest.mark.parametrize(
    "harm", [forget_keys, replace_database, move_database, begin_database, spoil_database, drop_table]
)
def test_whatever_happens_to_its_database_known_keys_hold_and_nobody_else_comes_in(
    tmp_path: Path, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    _, token = table_in(tmp_path).create("", INFER)
    keyring = Keyring(Settings(data_dir=tmp_path))
    keyring.refresh()
    assert keyring.fault is None
    harm(tmp_path)
    for _ in range(2):
        keyring.refresh()
        assert keyring.closed
        assert keyring.caller(f"Bearer {token}").actor == token.id
        with pytest.raises(Unauthorized):
            keyring.caller(None)
        assert keyring.fault is not None
    assert [record.levelname for record in caplog.records] == ["ERROR"], "told once"


@pytest.mark.parametrize("harm", [forget_keys, move_database, begin_database, drop_table])
def test_it_stays_closed_when_it_starts_again(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    _, token = table_in(tmp_path).create("", INFER)
    Keyring(Settings(data_dir=tmp_path)).refresh()
    harm(tmp_path)
    again = Keyring(Settings(data_dir=tmp_path))
    again.refresh()
    assert again.closed
    with pytest.raises(Unauthorized):
        again.caller(f"Bearer {token}")
    assert str(tmp_path / MARKER) in (again.fault or "")
    _, new = table_in(tmp_path).create("", INFER)
    again.refresh()
    assert again.caller(f"Bearer {new}").actor == new.id
    assert again.fault is None


def test_a_lost_key_comes_back_with_its_database_and_is_revoked_there(tmp_path: Path) -> None:
    key, token = table_in(tmp_path).create("", INFER)
    keyring = Keyring(Settings(data_dir=tmp_path))
    keyring.refresh()
    begin_database(tmp_path)
    keyring.refresh()
    for path in tmp_path.glob("registry.sqlite*"):
        path.unlink()
    for path in tmp_path.glob("moved-*"):
        path.rename(tmp_path / path.name.removeprefix("moved-"))
    keyring.refresh()
    assert keyring.fault is None
    table_in(tmp_path).revoke(key.id)
    keyring.refresh()
    with pytest.raises(Unauthorized, match="revoked"):
        keyring.caller(f"Bearer {token}")


def test_beyond_loopback_nobody_is_anonymous_unless_told_to(tmp_path: Path) -> None:
    for host, allowed, closed in (("0.0.0.0", False, True), ("0.0.0.0", True, False), ("127.0.0.1", False, False)):
        keyring = Keyring(Settings(data_dir=tmp_path / "data", host=host, allow_anonymous=allowed))
        keyring.refresh()
        assert keyring.closed is closed
        assert not keyring.in_force
    _, _ = table_in(tmp_path / "data").create("", INFER)
    allowed = Keyring(Settings(data_dir=tmp_path / "data", host="0.0.0.0", allow_anonymous=True))
    allowed.refresh()
    assert allowed.closed, "leave to be anonymous does not make keys void"


def test_a_look_that_fails_in_a_way_nobody_foresaw_is_not_the_last(tmp_path: Path) -> None:
    faults = [RuntimeError("unforeseen"), None]

    class Odd(KeyTable):
        def stamp(self) -> tuple[object, ...]:
            if faults and (fault := faults.pop(0)):
                raise fault
            return super().stamp()

    keyring = Keyring(Settings(data_dir=tmp_path), lambda: Odd(open_database(tmp_path)))
    keyring.refresh()
    assert keyring.fault
    with pytest.raises(NotReady):
        _ = keyring.closed
    keyring.refresh()
    assert not keyring.closed
