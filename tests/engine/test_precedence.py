"""Requests before patient work, on a fake clock."""

from typing import Any

import pytest

from service.engine.cost import Cost
from service.engine.job import Job
from service.engine.precedence import LEAST_SHARE, QUIET_SECONDS, SHARE, Precedence
from tests.engine.simulation import job


def patient(name: str = "a", frames: int = 100, **more: Any) -> Job:
    one = job(name, frames, **more)
    one.patient = True
    return one


def opened(fixed: float = 0.01, marginal: float = 0.0001) -> Precedence:
    """Of a device whose batches take `fixed` seconds and `marginal` for each window-frame."""
    queues = Precedence(10_000, batch_seconds=0.2)
    for frames in (100, 1_000):
        queues.pace.observe(frames, fixed + frames * marginal)
    return queues


def take(queues: Precedence, now: float, loading: frozenset[str] = frozenset()) -> list[Job]:
    return queues.next_batch(now, lambda one: one.version.name not in loading)


def test_requests_go_first_whatever_came_first() -> None:
    queues = opened()
    recorded, asked = patient(), job("a")
    queues.push(recorded)
    assert take(queues, 0.0) == [recorded]  # nobody has asked yet
    queues.push(patient())
    queues.push(asked)
    assert take(queues, 0.1) == [asked]
    assert take(queues, 0.2) == []


@pytest.mark.parametrize(("gap", "share"), [(0.0, LEAST_SHARE), (0.02, SHARE)])
def test_a_share_of_the_time_while_requests_come(gap: float, share: float) -> None:
    """Between them, and before them where they follow one another without a gap."""
    queues, served, now = opened(), {True: 0.0, False: 0.0}, 0.0
    for _ in range(100):
        queues.push(patient())
    while now < 20.0:
        queues.push(job("b"))
        for _ in range(2 if gap else 1):
            if not (batch := take(queues, now)):
                now += gap
                break
            [is_patient] = {one.patient for one in batch}  # the two are never in one batch
            assert len(batch) == 1 or not is_patient
            served[is_patient] += 0.01 + len(batch) * 0.01
            now += 0.01 + len(batch) * 0.01
    assert served[True] / now == pytest.approx(share, rel=0.15)


def test_all_of_the_time_soon_after_the_last_request() -> None:
    queues = opened()
    for _ in range(9):
        queues.push(patient())
    queues.push(job("b"))
    assert [one.patient for one in take(queues, 0.0)] == [False]
    assert take(queues, 0.02)  # due since ever
    assert take(queues, 0.04) == []
    pause = queues.pause(0.04)
    assert pause is not None
    assert take(queues, 0.04 + pause - 0.001) == []
    quiet = 0.02 + QUIET_SECONDS
    assert take(queues, quiet + 0.01)
    assert take(queues, quiet + 0.03)  # at once: nobody asks any more
    assert queues.pause(quiet + 0.05) is None


def test_batches_are_short_and_longer_where_nobody_asks() -> None:
    queues = opened(fixed=0.01, marginal=0.0001)
    for _ in range(20):
        queues.push(patient(frames=25))
    assert sum(one.frames for one in take(queues, 0.0)) == 250  # 25 ms beyond the fixed cost
    now, taken = 0.035, list[Job]()
    while not taken or not taken[0].patient:
        queues.push(job("b"))
        now, taken = now + 0.02, take(queues, now)
    assert sum(one.frames for one in taken) == 25  # a quarter of the fixed cost
    assert queues.rows_at_once(Cost(25, 1), patient=True) == 1
    assert queues.rows_at_once(Cost(25, 1), patient=False) == 80


def test_what_loads_holds_nobody_up_and_nothing_spins() -> None:
    queues = opened()
    cold, warm = patient("cold"), job("warm")
    queues.push(cold)
    queues.push(warm)
    loading = frozenset({"cold"})
    assert take(queues, 0.0, loading) == [warm]
    assert take(queues, 5.0, loading) == []
    assert queues.pause(5.0) is None  # until it is said to be resident
    assert ("cold", 1) in queues
    queues.wake(("cold", 1))
    assert take(queues, 5.0) == [cold]
    assert queues.waiting() == []


def test_both_queues_are_emptied_alike() -> None:
    queues = opened()
    jobs = [patient(), job("a"), patient("b")]
    for one in jobs:
        queues.push(one)
    queues.discard(jobs[2])
    assert queues.remove(("a", 1)) == [jobs[1], jobs[0]]
    assert take(queues, 9.0) == []
