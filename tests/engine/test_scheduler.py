"""The scheduler with a fake clock: fairness, bounds, abandoned jobs, loading adapters."""

import heapq
import random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.job import Job
from service.engine.scheduler import Scheduler
from service.errors import Overloaded, PayloadTooLarge


def job(name: str = "a", frames: int = 100, *, shape: int = 1, version: int = 1, deadline: float = 1e9) -> Job:
    adapter: Any = SimpleNamespace(name=name, version=version)
    return Job(adapter, None, 1, shape, frames, deadline)


def push(scheduler: Scheduler, *jobs: Job) -> None:
    for one in jobs:
        scheduler.admit(one.frames)
        scheduler.push(one)


def take(scheduler: Scheduler, now: float = 0.0, loading: frozenset[str] = frozenset()) -> list[Job]:
    return scheduler.next_batch(now, lambda one: one.version.name not in loading)


def test_mixes_adapters_of_one_shape() -> None:
    scheduler = Scheduler(1000, 10_000)
    jobs = [job("a"), job("b"), job("c", shape=2), job("a", version=2)]
    push(scheduler, *jobs)
    assert take(scheduler) == [jobs[0], jobs[1], jobs[3]]
    assert take(scheduler) == [jobs[2]]
    assert take(scheduler) == []
    assert scheduler.admitted_frames == 0


def test_batches_are_bounded_and_a_larger_job_runs_alone() -> None:
    scheduler = Scheduler(250, 10_000)
    jobs = [job("a"), job("b"), job("c", 900), job("d")]
    push(scheduler, *jobs)
    assert take(scheduler) == jobs[:2]
    assert take(scheduler) == [jobs[2]]
    assert take(scheduler) == [jobs[3]]


def test_a_full_queue_says_when_to_come_back() -> None:
    scheduler = Scheduler(100, 250)
    push(scheduler, job("a"), job("b"))
    with pytest.raises(Overloaded) as refused:
        scheduler.admit(100)
    assert refused.value.retry_after == 1
    with pytest.raises(PayloadTooLarge, match=r"3 s of windows"):
        scheduler.admit(251)
    scheduler.observe(frames=50, seconds=1.0)
    with pytest.raises(Overloaded) as refused:
        scheduler.admit(100)
    assert refused.value.retry_after == 4  # 200 frames queued at 50 a second
    take(scheduler)
    scheduler.admit(100)


def test_abandoned_jobs_never_run_and_make_room() -> None:
    scheduler = Scheduler(1000, 300)
    gone, late, alive = job("a"), job("a", deadline=5.0), job("a")
    push(scheduler, gone, late, alive)
    gone.future.cancel()
    scheduler.drop_abandoned(now=1.0)
    assert scheduler.admitted_frames == 200
    assert take(scheduler, now=6.0) == [alive]
    assert scheduler.admitted_frames == 0


def test_loading_adapters_do_not_hold_up_others() -> None:
    scheduler = Scheduler(1000, 10_000)
    cold, hot = job("cold"), job("hot", shape=2)
    push(scheduler, cold, hot)
    assert take(scheduler, loading=frozenset({"cold"})) == [hot]
    assert take(scheduler, loading=frozenset({"cold"})) == []
    assert take(scheduler) == [cold]


def test_a_quiet_adapter_overtakes_a_busy_ones_backlog() -> None:
    scheduler = Scheduler(100, 10**6)
    push(scheduler, *(job("busy") for _ in range(50)))
    for _ in range(10):
        take(scheduler)
    quiet = job("quiet")
    push(scheduler, quiet)
    served = [take(scheduler)[0] for _ in range(2)]
    assert quiet in served


def test_removing_an_adapter_takes_all_its_jobs() -> None:
    scheduler = Scheduler(1000, 10_000)
    jobs = [job("a"), job("a", shape=2), job("a", version=2), job("b")]
    push(scheduler, *jobs)
    assert scheduler.remove(("a", 1)) == jobs[:2]
    assert set(scheduler.waiting()) == {("a", 2), ("b", 1)}
    assert scheduler.admitted_frames == 200


jobs_of = st.lists(
    st.tuples(st.sampled_from("abcde"), st.integers(1, 400), st.integers(1, 3), st.booleans()), max_size=60
)


@given(jobs_of, st.integers(50, 500))
def test_every_live_job_runs_exactly_once_within_bounds(descriptions: Any, batch_frames: int) -> None:
    scheduler = Scheduler(batch_frames, 10**9)
    alive = []
    for name, frames, shape, cancelled in descriptions:
        one = job(name, frames, shape=shape)
        push(scheduler, one)
        if cancelled:
            one.future.cancel()
        else:
            alive.append(one)
    served: list[Job] = []
    while batch := take(scheduler):
        assert len({one.shape for one in batch}) == 1
        assert len(batch) == 1 or sum(one.frames for one in batch) <= batch_frames
        served += batch
    assert len(served) == len(alive)
    assert {id(one) for one in served} == {id(one) for one in alive}
    assert scheduler.admitted_frames == 0
    for name in "abcde":  # first come, first served within an adapter and shape
        for shape in (1, 2, 3):
            mine = [one for one in served if (one.version.name, one.shape) == (name, shape)]
            assert mine == [one for one in alive if (one.version.name, one.shape) == (name, shape)]


@given(st.lists(st.integers(1, 200), min_size=2, max_size=5), st.integers(1, 5))
def test_backlogged_adapters_share_equally(sizes: list[int], seed: int) -> None:
    """Start-time fair queueing's bound: the service of two backlogged flows differs by at most their largest jobs."""
    scheduler = Scheduler(1, 10**9)  # one job a batch
    random.seed(seed)
    names = [f"adapter-{i}" for i in range(len(sizes))]
    for _ in range(100):
        push(scheduler, *(job(name, size) for name, size in zip(names, sizes, strict=True)))
    service = dict.fromkeys(names, 0)
    for _ in range(60):
        served = take(scheduler)[0]
        service[served.version.name] += served.frames
        assert max(service.values()) - min(service.values()) <= 2 * max(sizes)


ROW_SECONDS, BATCH_SECONDS = 0.01, 0.08  # of the simulated device: 10 ms a row, at most 8 rows


def simulate(abusive: bool) -> list[float]:
    """The neighbours' waits, sorted: 10,000 requests, Zipf popularity over 500 adapters, a device at 60 % load."""
    generator = random.Random(1)
    names = generator.choices([f"adapter-{i}" for i in range(500)], [1 / (i + 1) for i in range(500)], k=10_000)
    clock = 0.0
    arrivals: list[tuple[float, str]] = []
    for name in names:
        clock += generator.expovariate(0.6 / ROW_SECONDS)
        arrivals.append((clock, name))
    if abusive:  # as much again as the device can do, on top
        arrivals += [(0.1 * burst, "abuser") for burst in range(int(clock / 0.1)) for _ in range(10)]
    heapq.heapify(arrivals)
    scheduler = Scheduler(batch_frames=800, queue_frames=10**9)
    waits: list[float] = []
    arrived: dict[int, float] = {}
    now = 0.0
    while arrivals:
        now = max(now, arrivals[0][0]) if not scheduler.waiting() else now
        while arrivals and arrivals[0][0] <= now:
            at, name = heapq.heappop(arrivals)
            one = job(name, 100)
            arrived[id(one)] = at
            push(scheduler, one)
        batch = take(scheduler, now)
        now += ROW_SECONDS * len(batch)
        waits += [now - arrived[id(one)] for one in batch if one.version.name != "abuser"]
    return sorted(waits)


def test_an_abusive_tenant_costs_its_neighbours_no_more_than_full_batches() -> None:
    """Whatever the abuser queues, a neighbour waits for the batch that runs, and its own two batches later at most."""
    undisturbed, disturbed = simulate(abusive=False), simulate(abusive=True)
    assert len(disturbed) > 9_900
    p99 = disturbed[int(0.99 * len(disturbed))]
    assert p99 <= 3 * BATCH_SECONDS, f"p99 {undisturbed[int(0.99 * len(undisturbed))]:.3f} s alone, {p99:.3f} s beside"
