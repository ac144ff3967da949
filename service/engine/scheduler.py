"""Which rows run next: a pure data structure without torch, threads or a clock of its own.

Fairness between adapters is start-time fair queueing (Goyal, Vin, Cheng 1996) over window-frames of 10 ms: a job's
start tag is the later of the virtual time and its adapter's last finish tag, and the smallest start tag runs first. A
busy adapter runs ahead in virtual time, so that a quiet one's next job overtakes its backlog.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from service.engine.job import FRAME_SECONDS, AdapterKey, Job
from service.errors import Overloaded, PayloadTooLarge
from service.registry.store import AdapterVersion

_RATE_SMOOTHING = 0.2  # weight of the newest batch in the drain rate
_FLOWS_KEPT = 1024  # finish tags kept before those in the past are forgotten


@dataclass(frozen=True, slots=True, order=True)
class _Tag:
    start: int
    sequence: int  # first come, first served among equals


class Scheduler:
    """The queue of jobs. Callers hold one lock around every call.

    Args:
        batch_frames: most window-frames in a batch; a single larger job still runs, alone.
        queue_frames: most window-frames admitted and not yet running.
    """

    def __init__(self, batch_frames: int, queue_frames: int) -> None:
        self.batch_frames = batch_frames
        self.queue_frames = queue_frames
        self.admitted_frames = 0
        self._lanes: dict[tuple[AdapterKey, Hashable], deque[tuple[_Tag, Job]]] = {}
        self._finish: dict[str, int] = {}
        self._virtual = 0
        self._sequence = 0
        self._rate = 0.0  # window-frames a second, of recent batches

    def admit(self, frames: int) -> None:
        """Reserves room for `frames` of work, to be pushed or withdrawn.

        Raises:
            PayloadTooLarge: more than the whole queue holds.
            Overloaded: the queue is full now; carries when to try again.
        """
        if frames > self.queue_frames:
            raise PayloadTooLarge(
                f"the request asks for {frames * FRAME_SECONDS:.0f} s of windows (windows x adapters); the queue "
                f"holds {self.queue_frames * FRAME_SECONDS:.0f} s: send fewer clips, adapters or windows"
            )
        if self.admitted_frames + frames > self.queue_frames:
            wait = self.admitted_frames / self._rate if self._rate else 1.0
            raise Overloaded(
                f"{self.admitted_frames * FRAME_SECONDS:.0f} s of windows are queued, and "
                f"{self.queue_frames * FRAME_SECONDS:.0f} s fit; try again later",
                retry_after=float(min(60, max(1, math.ceil(wait)))),
            )
        self.admitted_frames += frames

    def withdraw(self, frames: int) -> None:
        """Gives back what `admit` reserved and nobody pushed."""
        self.admitted_frames -= frames

    def push(self, job: Job) -> None:
        """Queues a job whose window-frames were admitted."""
        start = max(self._virtual, self._finish.get(job.flow, 0))
        self._finish[job.flow] = start + job.frames
        self._sequence += 1
        self._lanes.setdefault((job.key, job.shape), deque()).append((_Tag(start, self._sequence), job))

    def next_batch(self, now: float, ready: Callable[[Job], bool]) -> list[Job]:
        """Takes the jobs of the next batch: one input shape, adapters mixed, fair, within `batch_frames`.

        Args:
            now: on the clock of the jobs' deadlines; abandoned jobs are dropped on the way.
            ready: whether a job's adapter can run; others wait without holding up the rest.

        Returns:
            The jobs in the order of their tags, empty when nothing can run.
        """
        heads = []
        for lane_key in list(self._lanes):
            tag = self._head(lane_key, now)
            if tag is not None and ready(self._lanes[lane_key][0][1]):
                heads.append((tag, lane_key))
        if not heads:
            return []
        shape = min(heads)[1][1]
        heads = [head for head in heads if head[1][1] == shape]
        heapq.heapify(heads)
        batch: list[Job] = []
        frames = 0
        while heads:
            tag, lane_key = heapq.heappop(heads)
            job = self._lanes[lane_key][0][1]
            if batch and frames + job.frames > self.batch_frames:
                break
            self._lanes[lane_key].popleft()
            self.withdraw(job.frames)
            batch.append(job)
            frames += job.frames
            self._virtual = max(self._virtual, tag.start)
            following = self._head(lane_key, now)
            if following is not None:
                heapq.heappush(heads, (following, lane_key))
        self._forget_idle_flows()
        return batch

    def remove(self, key: AdapterKey) -> list[Job]:
        """Takes every job of one adapter version out of the queue."""
        removed = [job for lane_key in list(self._lanes) if lane_key[0] == key for _, job in self._lanes.pop(lane_key)]
        self.withdraw(sum(job.frames for job in removed))
        return removed

    def drop_abandoned(self, now: float) -> None:
        """Makes room by dropping every job that nobody waits for, wherever it stands in its lane."""
        for lane_key, lane in list(self._lanes.items()):
            kept = deque(item for item in lane if not item[1].abandoned(now))
            self.withdraw(sum(job.frames for _, job in lane) - sum(job.frames for _, job in kept))
            if kept:
                self._lanes[lane_key] = kept
            else:
                del self._lanes[lane_key]

    def waiting(self) -> dict[AdapterKey, AdapterVersion]:
        """The adapter versions that have jobs queued."""
        return {lane_key[0]: lane[0][1].version for lane_key, lane in self._lanes.items()}

    def observe(self, frames: int, seconds: float) -> None:
        """Learns how fast the device drains the queue: `frames` of windows took `seconds`."""
        rate = frames / max(seconds, 1e-6)
        self._rate = rate if not self._rate else (1 - _RATE_SMOOTHING) * self._rate + _RATE_SMOOTHING * rate

    def _head(self, lane_key: tuple[AdapterKey, Hashable], now: float) -> _Tag | None:
        """Tag of a lane's first live job; drops the dead ones before it and the lane when it is empty."""
        lane = self._lanes[lane_key]
        while lane:
            tag, job = lane[0]
            if not job.abandoned(now):
                return tag
            lane.popleft()
            self.withdraw(job.frames)
        del self._lanes[lane_key]
        return None

    def _forget_idle_flows(self) -> None:
        if len(self._finish) > _FLOWS_KEPT:
            self._finish = {flow: finish for flow, finish in self._finish.items() if finish > self._virtual}
