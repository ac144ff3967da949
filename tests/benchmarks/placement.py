"""On which replica an adapter's requests should run: `python -m tests.benchmarks.placement [--replicas 2 8 64]`.

Each replica is the engine's own scheduler and slots on a fake clock, with a device that takes a fixed and a marginal
time for a batch and a loader that takes one adapter after another. Requests of 1.28 s come at random (Poisson) for
adapters of Zipf's popularity. What differs is who picks the replica:

- `random`: any.
- `hash`: consistent hashing of the adapter's name (Karger et al., STOC 1997), 64 points a replica.
- `bounded hash`: its successor on the ring that has less than 1.25 times the mean in flight (Mirrokni, Thorup,
  Zadimoghaddam, SODA 2018).
- `hash of 2`, `hash of 4`: of the first k on the ring, the one with the least in flight.
- `resident`: of the replicas that hold the adapter and are within that bound, the one with the least in flight; else as
  `bounded hash`. It sees every replica's slots at once, which no router does: the bound of what knowing could bring.
"""

import argparse
import heapq
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from service.cluster.placement import Ring, bound
from service.engine.job import AdapterKey
from service.engine.scheduler import Scheduler
from service.engine.slots import Slots, State
from tests.benchmarks.tenants import show, write_json

SLOTS = 64
FRAMES = 128  # of a request: 1.28 s
BATCH_FRAMES = 32 * FRAMES
FIXED, MARGINAL = 0.004, 0.004 / FRAMES  # seconds of a batch, and of each of its frames
LOAD_HOST, LOAD_DISK = 0.003, 0.015  # seconds until an adapter is in its slot
HOST_ADAPTERS = 512  # that a replica's memory keeps
OFFERED = 0.6  # of what whole batches could take
RATE = OFFERED * 32 / (FIXED + MARGINAL * BATCH_FRAMES)  # requests a second and replica
SETTLED = 0.3  # of a run's time, before which nothing counts


@dataclass(slots=True, eq=False)
class Request:
    """As the scheduler sees a job."""

    key: AdapterKey
    came: float
    flow: str
    frames: int = FRAMES
    nbytes: int = 0
    shape: int = FRAMES
    patient: bool = False

    def abandoned(self, now: float) -> bool:
        return False


class Replica:
    """One process with a device: the real scheduler and slots, fake times."""

    def __init__(self, number: int, world: "World") -> None:
        self.number, self._world = number, world
        self.scheduler, self.slots = Scheduler(BATCH_FRAMES), Slots(SLOTS)
        self.requests: set[Request] = set()  # queued or running
        self.loads = 0
        self.busy_seconds = 0.0
        self.is_alive = True
        self._is_busy = False
        self._wanted: OrderedDict[AdapterKey, None] = OrderedDict()
        self._loading: AdapterKey | None = None
        self._host: OrderedDict[AdapterKey, None] = OrderedDict()

    def submit(self, request: Request) -> None:
        self.requests.add(request)
        self.scheduler.push(request)  # type: ignore[arg-type]
        self._advance()

    def holds(self, key: AdapterKey) -> bool:
        return self.slots.state(key) is State.RESIDENT

    def _is_resident(self, job: Any) -> bool:
        if self.holds(job.key):
            return True
        self._wanted[job.key] = None
        return False

    def _advance(self) -> None:
        if not self._is_busy and (batch := self.scheduler.next_batch(self._world.now, self._is_resident)):
            for job in batch:
                self.slots.lease(job.key)
            frames = sum(job.frames for job in batch)
            seconds = FIXED + MARGINAL * frames
            self._is_busy = True
            self.busy_seconds += seconds
            self._world.after(seconds, lambda: self._ran(batch, frames, seconds))
        self._load()

    def _ran(self, batch: Sequence[Any], frames: int, seconds: float) -> None:
        if not self.is_alive:
            return
        self._is_busy = False
        self.scheduler.pace.observe(frames, seconds)
        for job in batch:
            self.slots.release(job.key)
            self.requests.remove(job)
            self._world.answered(job)
        self._advance()

    def _load(self) -> None:
        while self._wanted and self._loading is None:
            key = next(iter(self._wanted))
            if self.slots.state(key) is not State.REGISTERED or key not in self.scheduler:
                del self._wanted[key]
            elif self.slots.place(key, self.scheduler) is None:
                return
            else:
                del self._wanted[key]
                self._loading = key
                self.loads += 1
                self._world.after(LOAD_HOST if key in self._host else LOAD_DISK, self._loaded)

    def _loaded(self) -> None:
        key, self._loading = self._loading, None
        if not self.is_alive or key is None:
            return
        self._host[key] = None
        self._host.move_to_end(key)
        if len(self._host) > HOST_ADAPTERS:
            self._host.popitem(last=False)
        self.slots.loaded(key)
        self.scheduler.wake(key)
        self._advance()


def _ring(replicas: Sequence[Replica]) -> Ring[Replica]:
    return Ring({str(one.number): one for one in replicas})


def _least(replicas: Sequence[Replica]) -> Replica:
    return min(replicas, key=lambda one: len(one.requests))


def _bounded(world: "World", key: AdapterKey) -> Replica:
    most = world.bound()
    return next(one for one in world.ring.successors(key[0]) if len(one.requests) < most)


def _resident(world: "World", key: AdapterKey) -> Replica:
    most = world.bound()
    holding = [one for one in world.replicas if one.holds(key) and len(one.requests) < most]
    return _least(holding) if holding else _bounded(world, key)


Policy = Callable[["World", AdapterKey], Replica]
POLICIES: dict[str, Policy] = {
    "random": lambda world, _: world.replicas[world.chance.integers(len(world.replicas))],
    "hash": lambda world, key: world.ring.successors(key[0])[0],
    "bounded hash": _bounded,
    "hash of 2": lambda world, key: _least(world.ring.successors(key[0])[:2]),
    "hash of 4": lambda world, key: _least(world.ring.successors(key[0])[:4]),
    "resident": _resident,
}


@dataclass
class World:
    """A fleet, what is offered to it and what becomes of that.

    Args:
        changes: what happens to the fleet, and when: "dies" or "joins".
    """

    policy: Policy
    adapters: int
    count: int
    seconds: float
    changes: Sequence[tuple[float, str]] = ()
    rate: float = RATE
    now: float = 0.0
    came: int = 0
    latencies: list[tuple[float, float]] = field(default_factory=list)  # when a request came, and how long it took
    loads: list[tuple[float, int]] = field(default_factory=list)  # over all replicas, at each hundredth of the time

    def __post_init__(self) -> None:
        self.chance = np.random.default_rng(0)
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self.ever = [Replica(number, self) for number in range(self.count)]
        self.replicas = list(self.ever)
        self.ring = _ring(self.replicas)
        weights = 1 / np.arange(1, self.adapters + 1)
        self._popularity = np.cumsum(weights / weights.sum())

    def after(self, seconds: float, then: Callable[[], object]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), then))

    def bound(self) -> float:
        """In flight at a replica, that one more should not pass."""
        return bound(sum(len(one.requests) for one in self.replicas), len(self.replicas))

    def run(self) -> "World":
        """Until everything that came is answered."""
        for number in range(101):
            self.after(self.seconds * number / 100, self._look)
        for at, what in self.changes:
            self.after(at, self._die if what == "dies" else self._join)
        arrivals = self._arrivals()
        self._come(next(arrivals), arrivals)
        while self._events:
            self.now, _, then = heapq.heappop(self._events)
            then()
        return self

    def answered(self, request: Request) -> None:
        self.latencies.append((request.came, self.now - request.came))

    def _arrivals(self) -> Iterator[tuple[float, AdapterKey]]:
        at, rate = 0.0, self.rate * self.count
        while True:
            gaps = self.chance.exponential(1 / rate, 4096)
            picks = np.searchsorted(self._popularity, self.chance.random(4096))
            for gap, pick in zip(gaps, picks, strict=True):
                at += gap
                yield at, (f"adapter-{pick:05}", 1)

    def _come(self, arrival: tuple[float, AdapterKey], others: Iterator[tuple[float, AdapterKey]]) -> None:
        at, key = arrival
        if at > self.seconds:
            return

        def arrive() -> None:
            self.came += 1
            self._route(Request(key, at, key[0]))
            self._come(next(others), others)

        self.after(at - self.now, arrive)

    def _route(self, request: Request) -> None:
        self.policy(self, request.key).submit(request)

    def _look(self) -> None:
        self.loads.append((self.now, sum(one.loads for one in self.ever)))

    def _die(self) -> None:
        gone = self.replicas.pop(0)
        gone.is_alive = False
        self.ring = _ring(self.replicas)
        for request in sorted(gone.requests, key=lambda one: one.came):  # once more, elsewhere
            self._route(request)

    def _join(self) -> None:
        self.ever.append(Replica(len(self.ever), self))
        self.replicas.append(self.ever[-1])
        self.ring = _ring(self.replicas)

    def p(self, quantile: float, start: float, end: float) -> float:
        """Milliseconds that a quantile of the requests took that came from `start` to `end`, seconds."""
        return 1e3 * float(np.quantile([took for came, took in self.latencies if start <= came < end], quantile))

    def loads_a_second(self, start: float, end: float) -> float:
        times, counts = zip(*self.loads, strict=True)
        return float(np.diff(np.interp([start, end], times, counts))[0] / (end - start))

    @property
    def hottest(self) -> float:
        """Of the replicas that were there throughout: the busiest one's time on its device against the mean."""
        busy = [one.busy_seconds for one in self.ever[: self.count] if one.is_alive]
        return max(busy) / float(np.mean(busy))

    @property
    def throughput(self) -> float:
        """Requests answered a second, of those that came after the start, until the last was answered."""
        begin = SETTLED * self.seconds
        ends = [came + took for came, took in self.latencies if came >= begin]
        return len(ends) / (max(ends) - begin)


def steady(policy: Policy, adapters: int, count: int, seconds: float) -> dict[str, float]:
    """A fleet that stays as it is."""
    world, begin = World(policy, adapters, count, seconds).run(), SETTLED * seconds
    return {
        "loads a second and replica": world.loads_a_second(begin, seconds) / count,
        "p50, ms": world.p(0.5, begin, seconds),
        "p99, ms": world.p(0.99, begin, seconds),
        "answered of offered": world.throughput / (world.rate * count),
        "busiest : mean": world.hottest,
    }


def shaken(policy: Policy, adapters: int, count: int, seconds: float) -> dict[str, float]:
    """One replica dies half way and another joins at three quarters; the second after each is looked at."""
    died, joined = seconds / 2, 3 * seconds / 4
    world = World(policy, adapters, count, seconds, [(died, "dies"), (joined, "joins")]).run()
    assert len(world.latencies) == world.came, "a request was lost"
    return {
        "p99 before": world.p(0.99, SETTLED * seconds, died),
        "p99 after a death": world.p(0.99, died - 0.2, died + 1),
        "loads after a death": world.loads_a_second(died, died + 1) / count,
        "p99 after a join": world.p(0.99, joined, joined + 1),
        "loads after a join": world.loads_a_second(joined, joined + 1) / count,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.placement", description=__doc__)
    parser.add_argument("--adapters", type=int, nargs="+", default=[500, 5000])
    parser.add_argument("--replicas", type=int, nargs="+", default=[2, 8, 64])
    parser.add_argument("--seconds", type=float, default=10.0, help="of the fake clock, for each run")
    options = parser.parse_args(arguments)
    results: dict[str, dict[str, dict[str, float]]] = {}
    for measure in (steady, shaken):
        for adapters, count in itertools.product(options.adapters, options.replicas):
            title = f"{measure.__name__}: {adapters:,} adapters, {count} replicas of {SLOTS} slots"
            found = {name: measure(policy, adapters, count, options.seconds) for name, policy in POLICIES.items()}
            results[title] = found
            rows = [[name, *(f"{value:.3g}" for value in row.values())] for name, row in found.items()]
            show(title, ["who picks", *next(iter(found.values()))], rows)
    write_json("placement", results)


if __name__ == "__main__":
    main()
