"""Limits of a key, by a clock that stands until it is moved."""

import re
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.access.keys import Grant, Rate, Scope
from service.access.limits import CONCURRENCY, HEARD_SECONDS, RATE, Gate, TokenBucket

SCOPES = frozenset({Scope.INFER})


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_bucket_lets_its_burst_through_then_its_rate() -> None:
    bucket = TokenBucket.full(Rate(3, 60), now=0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert bucket.wait == pytest.approx(20.0)
    assert not bucket.take(19.9)
    assert bucket.take(20.0)
    assert not bucket.take(20.0)
    assert [bucket.take(1000.0) for _ in range(4)] == [True, True, True, False]


def test_a_clock_that_goes_back_gives_nothing() -> None:
    bucket = TokenBucket.full(Rate(1, 1), now=50.0)
    assert bucket.take(50.0)
    assert not bucket.take(10.0)
    assert not bucket.take(50.5)
    assert bucket.take(51.0)


@given(
    st.builds(Rate, st.integers(1, 50), st.sampled_from([1, 60, 3600])),
    st.lists(st.floats(0, 100, allow_nan=False), min_size=1, max_size=200),
)
def test_no_window_sees_more_than_two_bursts(rate: Rate, steps: list[float]) -> None:
    """A bucket admits at most `requests` at once, and over any time t at most requests * (1 + t / seconds)."""
    bucket, now, taken = TokenBucket.full(rate, 0.0), 0.0, list[float]()
    for step in steps:
        now += step
        if bucket.take(now):
            taken.append(now)
        assert 0 <= bucket.level <= rate.requests
        assert 0 < bucket.wait <= rate.seconds / rate.requests + 1e-9
    for first, start in enumerate(taken):
        for last in range(first, len(taken)):
            span = taken[last] - start
            assert last - first + 1 <= rate.requests * (1 + span / rate.seconds) + 1e-6


def test_the_rate_of_one_key_is_not_anothers(clock: Clock) -> None:
    gate, grant = Gate(clock), Grant(SCOPES, rate=Rate(1, 1))
    assert gate.enter("a", grant).exceeded is None
    refused = gate.enter("a", grant)
    assert (refused.exceeded, refused.retry_after) == (RATE, pytest.approx(1.0))
    assert gate.enter("b", grant).exceeded is None
    clock.now += 1.0
    assert gate.enter("a", grant).exceeded is None


def test_concurrency_ends_with_the_request(clock: Clock) -> None:
    gate, grant = Gate(clock), Grant(SCOPES, concurrency=2)
    assert [gate.enter("a", grant).exceeded for _ in range(3)] == [None, None, CONCURRENCY]
    gate.leave("a")
    assert [gate.enter("a", grant).exceeded for _ in range(2)] == [None, CONCURRENCY]


def test_a_request_refused_for_concurrency_costs_no_token(clock: Clock) -> None:
    gate, grant = Gate(clock), Grant(SCOPES, rate=Rate(2, 1), concurrency=1)
    assert gate.enter("a", grant).exceeded is None
    assert gate.enter("a", grant).exceeded == CONCURRENCY
    gate.leave("a")
    assert gate.enter("a", grant).exceeded is None
    gate.leave("a")
    assert gate.enter("a", grant).exceeded == RATE


def test_no_limits_no_headers(clock: Clock) -> None:
    gate = Gate(clock)
    verdict = gate.enter("a", Grant(SCOPES))
    assert (verdict.exceeded, verdict.headers) == (None, {})
    gate.leave("a")


def test_headers_say_the_policies_and_what_is_left(clock: Clock) -> None:
    gate, grant = Gate(clock), Grant(SCOPES, rate=Rate(60, 60), concurrency=4)
    headers = gate.enter("a", grant).headers
    assert headers["RateLimit-Policy"] == '"rate";q=60;w=60, "concurrency";q=4;qu="concurrent-requests"'
    assert headers["RateLimit"] == '"rate";r=59;t=1, "concurrency";r=3'


def test_waiting_as_told_is_enough(clock: Clock) -> None:
    """`t`, and so Retry-After, is not earlier than the next token: the draft's section 6."""
    gate, grant = Gate(clock), Grant(SCOPES, rate=Rate(2, 3600))
    for _ in range(2):
        gate.enter("a", grant)
    refused = gate.enter("a", grant)
    found = re.fullmatch(r'"rate";r=0;t=(\d+)', refused.headers["RateLimit"])
    assert found is not None
    assert int(found[1]) == refused.retry_after == 1800
    clock.now += 1799.0
    assert gate.enter("a", grant).exceeded == RATE
    clock.now += 1.0
    assert gate.enter("a", grant).exceeded is None


def test_servers_that_hear_each_other_count_together(clock: Clock) -> None:
    here, there = Gate(clock), Gate(clock)
    grant = Grant(SCOPES, rate=Rate(4, 60), concurrency=3)

    def share() -> None:
        for one, other in ((here, there), (there, here)):
            for told in one.tell():
                one.hear(told)  # its own, too
                other.hear(told)

    for gate in (here, here, there):
        assert gate.enter("a", grant).exceeded is None
    share()
    assert {gate.enter("a", grant).exceeded for gate in (here, there)} == {CONCURRENCY}
    here.leave("a")
    here.leave("a")
    there.leave("a")
    share()
    assert here.enter("a", grant).headers["RateLimit"].startswith('"rate";r=0')  # three of four were taken before
    share()
    refused = there.enter("a", grant)
    assert (refused.exceeded, refused.retry_after) == (RATE, pytest.approx(15.0))
    clock.now += 15
    assert there.enter("a", grant).exceeded is None
    assert Gate(clock).tell() == []


def test_more_than_there_was_is_a_debt_of_one_bucket_at_most(clock: Clock) -> None:
    here, there = Gate(clock), Gate(clock)
    grant = Grant(SCOPES, rate=Rate(2, 60))
    for gate in (here, here, there, there):
        assert gate.enter("a", grant).exceeded is None  # before they hear of each other
    for told in there.tell():
        here.hear(told)
    assert here.enter("a", grant).retry_after == pytest.approx(90.0)
    clock.now += 90
    assert here.enter("a", grant).exceeded is None


def test_a_server_that_died_holds_nothing(clock: Clock) -> None:
    here, there = Gate(clock), Gate(clock)
    grant = Grant(SCOPES, concurrency=1)
    there.enter("a", grant)
    for told in there.tell():
        here.hear(told)
    assert here.enter("a", grant).exceeded == CONCURRENCY
    clock.now += HEARD_SECONDS
    assert here.enter("a", grant).exceeded is None


def test_servers_that_are_gone_are_forgotten(clock: Clock) -> None:
    here, grant = Gate(clock), Grant(SCOPES, concurrency=100)
    for _ in range(50):  # of one that is started again and again
        there = Gate(clock)
        there.enter("a", grant)
        for told in there.tell():
            here.hear(told)
        clock.now += HEARD_SECONDS / 2
    assert len(here._used["a"].elsewhere) == 2


def test_what_is_told_fits_a_notice(clock: Clock) -> None:
    here, there = Gate(clock), Gate(clock)
    grant = Grant(SCOPES, rate=Rate(10_000, 3600), concurrency=50_000)
    for number in range(200):
        here.enter(f"{number:012}", grant)
    told = here.tell()
    assert max(map(len, told)) < 7_900
    for one in told:
        there.hear(one)
    assert there.enter(f"{199:012}", grant).headers["RateLimit"].endswith('"concurrency";r=49998')
