"""The scheduler with a fake clock: fairness, bounds, abandoned jobs, loading adapters."""

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.engine.job import Job
from service.engine.scheduler import Scheduler
from tests.engine.simulation import job


def push(scheduler: Scheduler, *jobs: Job) -> None:
    for one in jobs:
        scheduler.push(one)


def take(scheduler: Scheduler, now: float = 0.0, loading: frozenset[str] = frozenset()) -> list[Job]:
    return scheduler.next_batch(now, lambda one: one.version.name not in loading)


def test_mixes_adapters_of_one_shape() -> None:
    scheduler = Scheduler(1000)
    jobs = [job("a"), job("b"), job("c", shape=2), job("a", version=2)]
    push(scheduler, *jobs)
    assert take(scheduler) == [jobs[0], jobs[1], jobs[3]]
    assert take(scheduler) == [jobs[2]]
    assert take(scheduler) == []
    assert not scheduler.waiting()


def test_batches_are_bounded_and_a_larger_job_runs_alone() -> None:
    scheduler = Scheduler(250)
    jobs = [job("a"), job("b"), job("c", 900), job("d")]
    push(scheduler, *jobs)
    assert take(scheduler) == jobs[:2]
    assert take(scheduler) == [jobs[2]]
    assert take(scheduler) == [jobs[3]]


def test_abandoned_jobs_never_run_and_make_room_at_once() -> None:
    scheduler = Scheduler(1000)
    gone, late, alive = job("a"), job("a", deadline=5.0), job("a")
    push(scheduler, job("a"), gone, late, alive)
    scheduler.discard(gone)  # in the middle of its lane
    scheduler.discard(gone)
    assert take(scheduler, now=6.0)[1:] == [alive]
    assert not scheduler.waiting()


def test_a_deadline_that_passes_behind_others_costs_no_device_time() -> None:
    scheduler = Scheduler(100)  # one job a batch
    first, late, last = job("a"), job("a", deadline=2.0), job("a")
    push(scheduler, first, late, last)
    assert take(scheduler, now=1.0) == [first]
    assert take(scheduler, now=3.0) == [last]


def test_abandoned_work_does_not_count_against_its_flow() -> None:
    scheduler = Scheduler(100)
    abandoned = [job("unlucky") for _ in range(50)]
    push(scheduler, *abandoned)
    for one in abandoned:
        scheduler.discard(one)
    push(scheduler, *(job("steady") for _ in range(10)), job("unlucky"))
    assert "unlucky" in [one.flow for one in (*take(scheduler), *take(scheduler))]


def test_batches_are_bounded_in_time_as_soon_as_the_device_is_known() -> None:
    scheduler = Scheduler(10_000, batch_seconds=0.5)
    assert scheduler.batch_frames == 10_000
    scheduler.pace.observe(100, 0.2 + 0.1)
    scheduler.pace.observe(400, 0.2 + 0.4)  # 1 ms a frame and a fixed cost, which does not count
    assert scheduler.batch_frames == pytest.approx(500, abs=2)
    push(scheduler, *(job(f"adapter-{i}", 90) for i in range(20)))
    assert [len(take(scheduler)) for _ in range(4)] == [5, 5, 5, 5]


def test_a_request_over_several_adapters_waits_only_for_the_busy_one() -> None:
    scheduler = Scheduler(200)
    push(scheduler, *(job("busy") for _ in range(20)))
    spanning = [job("busy"), job("quiet"), job("other")]
    push(scheduler, *spanning)
    assert set(take(scheduler) + take(scheduler)) >= set(spanning[1:])
    rest = [one for _ in range(10) for one in take(scheduler)]
    assert rest[-1] is spanning[0]  # behind what the busy adapter was asked before


def test_loading_adapters_do_not_hold_up_others() -> None:
    scheduler = Scheduler(1000)
    cold, hot = job("cold"), job("hot", shape=2)
    push(scheduler, cold, hot)
    assert take(scheduler, loading=frozenset({"cold"})) == [hot]
    assert take(scheduler, loading=frozenset({"cold"})) == []
    assert take(scheduler) == []  # parked until it is said to be resident
    scheduler.wake(("cold", 1))
    assert take(scheduler) == [cold]


def test_a_quiet_adapter_overtakes_a_busy_ones_backlog() -> None:
    scheduler = Scheduler(100)
    push(scheduler, *(job("busy") for _ in range(50)))
    for _ in range(10):
        take(scheduler)
    quiet = job("quiet")
    push(scheduler, quiet)
    served = [take(scheduler)[0] for _ in range(2)]
    assert quiet in served


def test_removing_an_adapter_takes_all_its_jobs() -> None:
    scheduler = Scheduler(1000)
    jobs = [job("a"), job("a", shape=2), job("a", version=2), job("b")]
    push(scheduler, *jobs)
    assert scheduler.remove(("a", 1)) == jobs[:2]
    assert set(scheduler.waiting()) == {("a", 2), ("b", 1)}


def served_in_a_row(credit_frames: int, idle_jobs: int = 60) -> list[str]:
    """Who is served while a flow that idled for long and a busy one both have a backlog, one job of 100 frames a batch.

    Args:
        credit_frames: what the device does in the second that a flow may catch up.
    """
    scheduler = Scheduler(100)
    push(scheduler, *(job("busy") for _ in range(200)))
    for _ in range(100):
        take(scheduler)
        scheduler.pace.observe(credit_frames, 1.0)
    push(scheduler, *(job("idle") for _ in range(idle_jobs)))
    return [take(scheduler)[0].flow for _ in range(80)]


@pytest.mark.parametrize("credit", [100, 500, 2000])
def test_a_flow_that_idled_catches_up_one_second_of_the_device_and_no_more(credit: int) -> None:
    served = served_in_a_row(credit)
    ahead = served.index("busy")  # jobs of the flow that idled before the busy one has its turn
    assert credit <= 100 * ahead <= credit + 200
    after = served[ahead:]
    for count in range(1, min(len(after), 2 * (60 - ahead))):  # from then on both get the same
        assert abs(after[:count].count("busy") - after[:count].count("idle")) <= 1


def test_a_flow_that_never_idled_owes_nothing_to_those_that_did() -> None:
    """Virtual time goes on with whoever is served: a newcomer starts there, not where the queue began."""
    scheduler = Scheduler(100)
    for round_number in range(20):  # each newcomer finds a backlog of those before it
        push(scheduler, *(job(f"flow-{round_number}") for _ in range(6)))
        served = [take(scheduler)[0].flow for _ in range(5)]
        newest = f"flow-{round_number}"
        assert served.count(newest) < len(served) or not round_number


def test_emptying_the_queue_costs_what_is_in_it() -> None:
    """Every adapter's jobs taken out, as when the device fails: 3,000 took half a second under the lock."""
    scheduler = Scheduler(1000)
    push(scheduler, *(job(f"adapter-{i}") for i in range(3000)))
    started = time.thread_time()
    for key in scheduler.waiting():
        assert len(scheduler.remove(key)) == 1
    assert time.thread_time() - started < 0.2
    assert not scheduler.waiting()


jobs_of = st.lists(
    st.tuples(st.sampled_from("abcde"), st.integers(1, 400), st.integers(1, 3), st.booleans()), max_size=60
)


@settings(max_examples=40, deadline=None)
@given(jobs_of, st.integers(50, 500))
def test_every_live_job_runs_exactly_once_within_bounds(descriptions: Any, batch_frames: int) -> None:
    scheduler = Scheduler(batch_frames)
    alive = []
    for name, frames, shape, cancelled in descriptions:
        one = job(name, frames, shape=shape)
        push(scheduler, one)
        if cancelled:
            scheduler.discard(one)
        else:
            alive.append(one)
    served: list[Job] = []
    while batch := take(scheduler):
        assert len({one.shape for one in batch}) == 1
        assert len(batch) == 1 or sum(one.frames for one in batch) <= batch_frames
        served += batch
    assert len(served) == len(alive)
    assert {id(one) for one in served} == {id(one) for one in alive}
    assert not scheduler.waiting()
    for name in "abcde":  # first come, first served within an adapter and shape
        for shape in (1, 2, 3):
            mine = [one for one in served if (one.version.name, one.shape) == (name, shape)]
            assert mine == [one for one in alive if (one.version.name, one.shape) == (name, shape)]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 200), min_size=2, max_size=5))
def test_backlogged_adapters_share_equally(sizes: list[int]) -> None:
    """Start-time fair queueing's bound: the service of two backlogged flows differs by at most their largest jobs."""
    scheduler = Scheduler(1)  # one job a batch
    names = [f"adapter-{i}" for i in range(len(sizes))]
    for _ in range(100):
        push(scheduler, *(job(name, size) for name, size in zip(names, sizes, strict=True)))
    service = dict.fromkeys(names, 0)
    for _ in range(60):
        served = take(scheduler)[0]
        service[served.version.name] += served.frames
        assert max(service.values()) - min(service.values()) <= 2 * max(sizes)


class Machine(RuleBasedStateMachine):
    """Any order of arrivals, departures, loads, evictions and batches, against a model of plain lists."""

    BATCH = 300

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(self.BATCH)
        self.queued: list[Job] = []
        self.resident: set[str] = set()
        self.served: set[Job] = set()
        self.gone: set[Job] = set()
        self.now = 0.0

    @rule(name=st.sampled_from("abcd"), frames=st.integers(1, 400), shape=st.integers(1, 2), lasts=st.integers(1, 9))
    def arrive(self, name: str, frames: int, shape: int, lasts: int) -> None:
        one = job(name, frames, shape=shape, deadline=self.now + lasts)
        self.scheduler.push(one)
        self.queued.append(one)

    @precondition(lambda self: self.queued)
    @rule(at=st.integers(0, 99))
    def leave(self, at: int) -> None:
        one = self.queued.pop(at % len(self.queued))
        one.future.cancel()
        self.scheduler.discard(one)
        self.gone.add(one)

    @rule(name=st.sampled_from("abcd"))
    def load(self, name: str) -> None:
        self.resident.add(name)
        self.scheduler.wake((name, 1))

    @rule(name=st.sampled_from("abcd"))
    def evict(self, name: str) -> None:
        self.resident.discard(name)

    @rule(name=st.sampled_from("abcd"))
    def fail(self, name: str) -> None:
        removed = self.scheduler.remove((name, 1))
        mine = {one for one in self.queued if one.flow == name}
        assert {one for one in mine if not one.abandoned(self.now)} <= set(removed) <= mine
        self.queued = [one for one in self.queued if one.flow != name]
        self.gone |= set(removed)

    @rule()
    def wait(self) -> None:
        self.now += 1.0

    @rule()
    def run(self) -> None:
        batch = self.scheduler.next_batch(self.now, lambda one: one.flow in self.resident)
        alive = [one for one in self.queued if not one.abandoned(self.now)]
        can_run = [one for one in alive if one.flow in self.resident]
        assert bool(batch) == bool(can_run)
        assert len(set(batch)) == len(batch)
        assert set(batch) <= set(can_run)
        assert not set(batch) & (self.served | self.gone)
        assert len({one.shape for one in batch}) <= 1
        assert len(batch) <= 1 or sum(one.frames for one in batch) <= self.BATCH
        for name in "abcd":  # within a flow and shape, nobody overtakes
            mine = [one for one in batch if one.flow == name]
            assert (
                mine
                == [one for one in can_run if batch and (one.flow, one.shape) == (name, batch[0].shape)][: len(mine)]
            )
        self.served |= set(batch)
        self.queued = [one for one in self.queued if one not in self.served]

    @invariant()
    def no_job_is_lost(self) -> None:
        """Jobs past their deadline may leave the queue before anybody says so."""
        alive = [one for one in self.queued if not one.abandoned(self.now)]
        waiting = set(self.scheduler.waiting())
        assert {one.key for one in alive} <= waiting <= {one.key for one in self.queued}

    def teardown(self) -> None:
        """Whatever happened, everyone who still waits is served in the end."""
        for name in "abcd":
            self.load(name)
        while any(not one.abandoned(self.now) for one in self.queued):
            self.run()
        assert not self.scheduler.next_batch(self.now, lambda _: True)
        assert not self.scheduler.waiting()


TestScheduler = Machine.TestCase
TestScheduler.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
