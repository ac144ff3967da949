"""Two queues before one device: requests that somebody waits for, and patient work, of recordings, that gives way.

Nothing interrupts a batch, so whoever comes while patient work runs waits for its end. While requests come it therefore
runs in the shortest batches that still spread the device's fixed cost, and on a share of the time: most requests then
meet none of it. Once no request has come for a while it has the whole device, in batches that are still short.
"""

import math
from collections.abc import Callable

from service.engine.cost import Cost, Headroom, Pace
from service.engine.job import AdapterKey, Job
from service.engine.scheduler import Scheduler

SHARE = 1 / 32  # of the device's time that patient work has while requests come, between them
LEAST_SHARE = 1 / 128  # and where they never leave it anything
QUIET_SECONDS = 1.0  # without a request, after which it has all of it
BATCH_SECONDS = 0.025  # that a batch of it takes then, beyond the fixed cost
OVERHEAD = 0.8  # share of a batch's time that the fixed cost is while requests come


class Precedence:
    """As a `Scheduler`, of which there is one for each queue. Callers hold one lock around every call."""

    def __init__(self, batch_frames: int, batch_seconds: float | None = None, batch_bytes: float = math.inf) -> None:
        self.pace, self.headroom = Pace(), Headroom(batch_bytes)
        self._requests = Scheduler(batch_frames, batch_seconds, pace=self.pace, headroom=self.headroom)
        self._patient = Scheduler(batch_frames, BATCH_SECONDS, pace=self.pace, headroom=self.headroom)
        self._asked = -math.inf  # when a request's batch ended, or began
        self._due = -math.inf  # when patient work may run although requests come, as soon as none is queued
        self._overdue = -math.inf  # when it goes before them
        self._running: tuple[Scheduler, float] | None = None  # whose batch was taken last, and when

    def rows_at_once(self, cost: Cost, patient: bool) -> int:
        """How many rows of such a cost one job should hold, at least one."""
        if not patient:
            return self._requests.rows_at_once(cost)
        return max(1, min(self._patient.rows_at_once(cost), int(self._least_frames / cost.frames)))

    def __contains__(self, key: object) -> bool:
        """Whether jobs of this adapter version are queued."""
        return key in self._requests or key in self._patient

    def waiting(self) -> list[AdapterKey]:
        """The adapter versions that have jobs queued."""
        return list({*self._requests.waiting(), *self._patient.waiting()})

    def push(self, job: Job) -> None:
        """Queues a job."""
        self._of(job).push(job)

    def discard(self, job: Job) -> None:
        """As `Scheduler.discard`."""
        self._of(job).discard(job)

    def wake(self, key: AdapterKey) -> None:
        """As `Scheduler.wake`."""
        self._requests.wake(key)
        self._patient.wake(key)

    def remove(self, key: AdapterKey) -> list[Job]:
        """As `Scheduler.remove`."""
        return self._requests.remove(key) + self._patient.remove(key)

    def next_batch(self, now: float, ready: Callable[[Job], bool]) -> list[Job]:
        """As `Scheduler.next_batch`; empty also where patient work has to wait, for as long as `pause` says."""
        self._settle(now)
        is_quiet = now >= self._asked + QUIET_SECONDS
        turns = [self._requests]
        if is_quiet or now >= self._due:
            turns.insert(0 if now >= self._overdue and not is_quiet else 1, self._patient)
        for queue in turns:
            most = self._least_frames if queue is self._patient and not is_quiet else math.inf
            if batch := queue.next_batch(now, ready, most):
                self._running = queue, now
                return batch
        return []

    def pause(self, now: float) -> float | None:
        """Seconds after which patient work may run that may not yet; None where there is none such."""
        left = min(self._due, self._asked + QUIET_SECONDS) - now
        return left if left > 0 and self._patient.waiting() else None

    @property
    def _least_frames(self) -> float:
        return max(1.0, self.pace.frames_for(OVERHEAD))

    def _of(self, job: Job) -> Scheduler:
        return self._patient if job.patient else self._requests

    def _settle(self, now: float) -> None:
        """What the last batch, which has ended, means for the next ones."""
        if self._running is not None:
            queue, began = self._running
            self._running = None
            if queue is self._patient:
                self._due = now + (now - began) * (1 / SHARE - 1)
                self._overdue = now + (now - began) * (1 / LEAST_SHARE - 1)
            else:
                self._asked = now
