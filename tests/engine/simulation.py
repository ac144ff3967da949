"""A device and its clients on a fake clock: the real scheduler with its admission, everything else arithmetic."""

import heapq
import random
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from service.engine.job import Job
from service.engine.precedence import Precedence
from service.engine.room import Room
from service.errors import Overloaded

ABUSER = "abuser"
BACKLOG = 40  # windows of a recording that are queued
FRAMES = 128  # a request is one window of 1.28 s
ADAPTERS, REQUESTS = 500, 10_000


def job(name: str = "a", frames: int = 100, *, shape: int = 1, version: int = 1, deadline: float = 1e9) -> Job:
    adapter: Any = SimpleNamespace(name=name, version=version)
    return Job(adapter, (name, version), name, np.empty(0, np.float32), 1, shape, frames, 10 * frames, deadline)


@dataclass(frozen=True, slots=True)
class Device:
    """A batch takes `fixed + rows * marginal` seconds; `batch_rows` bounds it as `--batch-seconds` does."""

    name: str
    fixed: float
    marginal: float
    batch_rows: int = 62

    @property
    def capacity(self) -> float:
        """Rows a second in full batches."""
        return self.batch_rows / (self.fixed + self.batch_rows * self.marginal)


@dataclass(slots=True)
class Outcome:
    """What the neighbours of the abuser met, and what the abuser got."""

    waits: list[float] = field(default_factory=list)  # seconds from arrival to answer
    refused: int = 0
    abuser_served: int = 0
    abuser_refused: int = 0
    recorded: int = 0  # windows of the recording
    seconds: float = 0.0

    @property
    def p99(self) -> float:
        return sorted(self.waits)[int(0.99 * len(self.waits))]


def simulate(
    device: Device, load: float, abuse: float = 0.0, queue_seconds: float = 2400.0, recorded: bool = False
) -> Outcome:
    """10,000 requests for 500 adapters of Zipf popularity, and one more that sends in bursts of 50.

    Args:
        load, abuse: what the neighbours and the abuser send, as shares of the device's capacity.
        recorded: whether a recording has windows for the device all the time.
    """
    scheduler = Precedence(device.batch_rows * FRAMES, batch_seconds=0.2)
    room = Room(round(queue_seconds * 100), lambda: scheduler.pace.rate)
    arrivals = _arrivals(device, load, abuse)
    outcome, arrived, now, backlog = Outcome(), {}, 0.0, 0
    while arrivals or room.held:
        if not room.held and not recorded:
            now = max(now, arrivals[0][0])
        while arrivals and arrivals[0][0] <= now:
            at, name = heapq.heappop(arrivals)
            one = job(name, FRAMES)
            try:
                room.take({name: FRAMES})
            except Overloaded:
                outcome.refused += name != ABUSER
                outcome.abuser_refused += name == ABUSER
                continue
            arrived[one] = at
            scheduler.push(one)
        while recorded and backlog < BACKLOG:
            backlog += 1
            scheduler.push(replace(job("recorded", FRAMES), patient=True))
        batch = scheduler.next_batch(now, lambda _: True)
        if not batch:
            now = min(now + (scheduler.pause(now) or 0.0), arrivals[0][0])
            continue
        backlog -= sum(one.patient for one in batch)
        outcome.recorded += sum(one.patient for one in batch)
        seconds = device.fixed + len(batch) * device.marginal
        scheduler.pace.observe(len(batch) * FRAMES, seconds)
        now += seconds
        asked = [one for one in batch if not one.patient]
        for one in asked:
            room.give_back({one.flow: FRAMES})
        outcome.waits += [now - arrived[one] for one in asked if one.flow != ABUSER]
        if arrivals:  # the backlog left at the end is nobody's concern
            outcome.abuser_served += sum(one.flow == ABUSER for one in batch)
            outcome.seconds = now
        elif len(outcome.waits) + outcome.refused == REQUESTS:
            break
    return outcome


def _arrivals(device: Device, load: float, abuse: float) -> list[tuple[float, str]]:
    generator = random.Random(1)
    popularity = [1 / (i + 1) for i in range(ADAPTERS)]
    clock, arrivals = 0.0, []
    for name in generator.choices([f"adapter-{i}" for i in range(ADAPTERS)], popularity, k=REQUESTS):
        clock += generator.expovariate(load * device.capacity)
        arrivals.append((clock, name))
    burst_seconds = 50 / (abuse * device.capacity) if abuse else clock + 1
    arrivals += [(burst_seconds * i, ABUSER) for i in range(1, int(clock / burst_seconds)) for _ in range(50)]
    heapq.heapify(arrivals)
    return arrivals


DEVICES = (
    Device("base-size backbone on a CPU", fixed=0.010, marginal=0.043),  # as AST-base at 1.28 s on two cores
    Device("embedded backbone on a CPU", fixed=0.002, marginal=0.002),
    Device("a GPU", fixed=0.008, marginal=0.0003),
)


def main() -> None:
    """The neighbours' p99 without and beside an abuser who sends what the whole device can do, and a recording."""
    for device in DEVICES:
        for load in (0.4, 0.6):
            alone, beside = simulate(device, load), simulate(device, load, abuse=1.0)
            print(
                f"{device.name}, neighbours at {load:.0%}: p99 {alone.p99 * 1e3:.0f} ms alone, {beside.p99 * 1e3:.0f} "
                f"ms beside, {beside.p99 / alone.p99:.2f} x; {beside.refused} refused; the abuser got "
                f"{beside.abuser_served / beside.seconds / device.capacity:.0%}",
                flush=True,
            )
            beside = simulate(device, load, recorded=True)
            print(
                f"  beside a recording {beside.p99 * 1e3:.0f} ms, {beside.p99 / alone.p99:.2f} x; it got "
                f"{beside.recorded / beside.seconds / device.capacity:.1%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
