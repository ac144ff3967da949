"""What a key is: tokens, scopes, patterns, rates and lifetimes as they are written."""

from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.access.keys import (
    Grant,
    Key,
    KeyState,
    Rate,
    Scope,
    Token,
    digest_of,
    parse_lifetime,
    parse_patterns,
    parse_scopes,
    require_key_id,
    require_key_name,
)
from service.errors import InvalidRequest
from service.registry.manifest import is_name

NOW = datetime(2026, 5, 1, tzinfo=UTC)
INFER = frozenset({Scope.INFER})


def test_a_token_reads_back_and_hides_its_secret() -> None:
    token = Token.mint()
    assert Token.parse(str(token)) == token
    assert token.secret not in repr(token)
    assert len({Token.mint().secret for _ in range(100)}) == 100


@given(st.text(max_size=80))
def test_other_texts_are_no_tokens(text: str) -> None:
    assert Token.parse(text) is None


@pytest.mark.parametrize("change", [lambda t: t + "x", lambda t: t[:-1], lambda t: " " + t, lambda t: t.upper()])
def test_a_token_is_exact(change: object) -> None:
    assert callable(change)
    assert Token.parse(change(str(Token.mint()))) is None


def test_only_its_secret_opens_a_key() -> None:
    token, other = Token.mint(), Token.mint()
    key = Key(token.id, "", Grant(INFER), NOW, None, digest_of(token.secret))
    assert key.opens_with(token.secret)
    assert not key.opens_with(other.secret)
    assert not key.opens_with("")
    assert repr(key.digest) not in repr(key)


def test_states() -> None:
    ends = Grant(INFER, expires=NOW)
    assert Key("a", "", Grant(INFER), NOW, None, b"").state(NOW) is KeyState.ACTIVE
    assert Key("a", "", ends, NOW, None, b"").state(NOW - timedelta(seconds=1)) is KeyState.ACTIVE
    assert Key("a", "", ends, NOW, None, b"").state(NOW) is KeyState.EXPIRED
    assert Key("a", "", ends, NOW, NOW, b"").state(NOW) is KeyState.REVOKED


def test_scopes() -> None:
    assert parse_scopes(" infer, read,infer") == {Scope.INFER, Scope.READ}
    assert Grant(INFER).allows(Scope.INFER)
    assert not Grant(INFER).allows(Scope.READ)
    assert all(Grant(frozenset({Scope.ADMIN})).allows(scope) for scope in Scope)
    with pytest.raises(InvalidRequest, match="'root' is no scope"):
        parse_scopes("infer,root")
    with pytest.raises(InvalidRequest, match="at least one scope"):
        Grant(parse_scopes(","))


def test_patterns() -> None:
    grant = Grant(INFER, adapters=parse_patterns(["acme-*,shared", "shared", "x?"]))
    assert grant.adapters == ("acme-*", "shared", "x?")
    for name, covered in {"acme-": 1, "acme-events": 1, "acme": 0, "shared": 1, "shared2": 0, "x1": 1, "x": 0}.items():
        assert grant.covers(name) is bool(covered), name
    assert Grant(INFER).covers("anything")


@given(st.lists(st.text(max_size=70), min_size=1, max_size=3))
def test_patterns_are_made_of_what_names_are_made_of(texts: list[str]) -> None:
    try:
        grant = Grant(INFER, adapters=tuple(texts))
    except InvalidRequest:
        return
    for pattern in grant.adapters:
        name = pattern.replace("*", "a").replace("?", "b")
        assert is_name(name)
        assert grant.covers(name)
        assert fnmatchcase(name, pattern)


def test_a_pattern_of_many_stars_is_matched_at_once() -> None:
    grant = Grant(INFER, adapters=("*a" * 32,))
    assert not grant.covers("a" * 63 + "b")


@pytest.mark.parametrize("bad", ["", "/", "a/../b", "[a-z]", "A*", "a b", "-*", "a" * 65, "a\n"])
def test_bad_patterns(bad: str) -> None:
    with pytest.raises(InvalidRequest):
        Grant(INFER, adapters=(bad,))


@pytest.mark.parametrize(("text", "rate"), [("10/s", Rate(10, 1)), ("600/m", Rate(600, 60)), ("5/h", Rate(5, 3600))])
def test_rates(text: str, rate: Rate) -> None:
    assert Rate.parse(text) == rate
    assert str(rate) == text


@pytest.mark.parametrize("bad", ["", "10", "0/s", "-1/s", "1.5/s", "10/d", "10 /s", "9999999/s"])
def test_bad_rates(bad: str) -> None:
    with pytest.raises(InvalidRequest):
        Rate.parse(bad)


@pytest.mark.parametrize(("text", "hours"), [("90m", 1.5), ("12h", 12), ("30d", 720), ("2w", 336)])
def test_lifetimes(text: str, hours: float) -> None:
    assert parse_lifetime(text) == timedelta(hours=hours)


@pytest.mark.parametrize("bad", ["", "30", "0d", "-1d", "1y", "999999d", "999999w", "1d\n"])
def test_bad_lifetimes(bad: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_lifetime(bad)


@pytest.mark.parametrize("bad", [0, -1, 65_537])
def test_bad_concurrency(bad: int) -> None:
    with pytest.raises(InvalidRequest):
        Grant(INFER, concurrency=bad)


def test_labels_and_ids() -> None:
    require_key_name("Acme, batch job (night) +1")
    for bad in ("a\nb", "a\x1b[2J", "a" * 65, "a\tb"):
        with pytest.raises(InvalidRequest):
            require_key_name(bad)
    token = Token.mint()
    require_key_id(token.id)
    with pytest.raises(InvalidRequest) as refused:
        require_key_id(str(token))
    assert token.secret not in refused.value.detail
