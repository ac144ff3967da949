"""Limits of a key, by a clock that stands until it is moved."""

import re
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.access.keys import Grant, Rate, Scope
from service.access.limits import CONCURRENCY, RATE, Gate, TokenBucket

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
