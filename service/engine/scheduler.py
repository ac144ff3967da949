"""Which rows run next: a pure data structure without torch, threads or a clock of its own.

Fairness between flows is start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996) over window-frames of 10 ms: of the
flows that can run, the one that was served least goes first. A flow has one tag, which grows as it is served (as the
virtual token counter of Sheng et al., OSDI 2024), instead of one for each queued job: what is abandoned in the queue
costs its flow nothing. A flow that comes back from idling is lifted to the others' level, less a bounded credit (as the
borrowed virtual time of Duda and Cheriton, SOSP 1999): light flows overtake heavy ones.

A flow with more than a whole batch queued is bulk. Its jobs fill batches only as far as that spreads the device's fixed
cost, so that a light flow's request waits for short batches; bulk alone gets whole ones.
"""

import heapq
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from service.engine.cost import Cost, Headroom, Pace
from service.engine.job import AdapterKey, Job

_CREDIT_SECONDS = 1.0  # of the whole device, that a flow which idled may catch up
_OVERHEAD = 0.2  # share of a batch's time that its fixed cost may be where only bulk is left to run
_QUIET_BATCHES = 16  # of bulk alone, after which it may have whole batches
_FLOWS_KEPT = 1024  # tags kept before those that say nothing any more are forgotten


@dataclass(slots=True, eq=False)
class _Flow:
    tag: int = 0  # virtual time: window-frames served, lifted when it idled
    queued: int = 0  # window-frames of all its jobs
    runnable: int = 0  # its jobs in lanes that are not parked


@dataclass(slots=True, eq=False)
class _Lane:
    """Jobs of one adapter version and one input shape, first come, first served."""

    key: AdapterKey
    shape: Hashable
    flow: _Flow
    jobs: OrderedDict[Job, int] = field(default_factory=OrderedDict)  # and when each came
    entered: bool = False  # whether it has its entry in a heap
    parked: bool = False  # its adapter is not resident: it competes again after `wake`


_Tag = tuple[int, int]  # the flow's tag and when the lane's first job came
_Entry = tuple[_Tag, int, _Lane]  # the number is the lane's own, so that lanes are never compared


class Scheduler:
    """The queue of jobs. Callers hold one lock around every call.

    Every lane that can run has one entry in the heap of its shape. Tags only grow, so an entry that lags behind its
    lane is put right when it comes to the top: a batch costs O(log lanes) a job, however many lanes there are.

    Args:
        batch_frames: most window-frames in a batch; a single larger job still runs, alone.
        batch_bytes: most memory that a batch's rows may take, before the device runs out of it for the first time.
        batch_seconds: most time that a batch should take beyond its fixed cost, as far as batches so far tell: what
            arrives meanwhile waits for so long. None for no such bound.
        pace, headroom: of the device, where another queue learns them too.
    """

    def __init__(
        self,
        batch_frames: int,
        batch_seconds: float | None = None,
        batch_bytes: float = math.inf,
        pace: Pace | None = None,
        headroom: Headroom | None = None,
    ) -> None:
        self.headroom = headroom or Headroom(batch_bytes)
        self.pace = pace or Pace()
        self._batch_frames = batch_frames
        self._batch_seconds = batch_seconds
        self._flows: dict[str, _Flow] = {}
        self._lanes: dict[AdapterKey, dict[Hashable, _Lane]] = {}  # by version and shape; no empty ones
        self._heaps: dict[Hashable, list[_Entry]] = {}
        self._parked: dict[AdapterKey, list[_Lane]] = {}
        self._queued: Counter[AdapterKey] = Counter()  # jobs; no zeros
        self._flows_kept = _FLOWS_KEPT
        self._virtual = 0  # tag of the flow that the last batch began with
        self._sequence = 0
        self._bulk_batches = 0  # in a row

    @property
    def batch_frames(self) -> int:
        """Most window-frames in the next batch."""
        if self._batch_seconds is None:
            return self._batch_frames
        return max(1, int(min(self._batch_frames, self.pace.frames_within(self._batch_seconds))))

    def rows_at_once(self, cost: Cost) -> int:
        """How many rows of such a cost the next batch may hold, at least one."""
        return max(1, int(min(self.batch_frames / cost.frames, self.headroom.nbytes / cost.nbytes)))

    def __contains__(self, key: object) -> bool:
        """Whether jobs of this adapter version are queued."""
        return key in self._queued

    def waiting(self) -> list[AdapterKey]:
        """The adapter versions that have jobs queued."""
        return list(self._queued)

    def push(self, job: Job) -> None:
        """Queues a job."""
        lanes = self._lanes.setdefault(job.key, {})
        lane = lanes.get(job.shape)
        if lane is None:
            lane = lanes[job.shape] = _Lane(job.key, job.shape, self._flows.setdefault(job.flow, _Flow()))
        self._sequence += 1
        lane.jobs[job] = self._sequence
        lane.flow.queued += job.frames
        self._queued[job.key] += 1
        if not lane.parked:
            self._compete(lane, 1)

    def discard(self, job: Job) -> None:
        """Takes a job that nobody waits for out of the queue, if it is there, and gives its room back at once."""
        lane = self._lanes.get(job.key, {}).get(job.shape)
        if lane is not None and job in lane.jobs:
            self._take(lane, job)

    def next_batch(self, now: float, ready: Callable[[Job], bool], most: float = math.inf) -> list[Job]:
        """Takes the next batch's jobs: one input shape, adapters mixed, fair, within `batch_frames` and `headroom`.

        Args:
            now: on the clock of the jobs' deadlines; abandoned jobs are dropped on the way.
            ready: whether a job's adapter can run; the others are parked until `wake` and hold nobody up.
            most: window-frames beyond which the batch does not grow.

        Returns:
            The jobs in the order of their tags, empty when nothing can run.
        """
        tops = [top for shape in list(self._heaps) if (top := self._top(shape, now, ready)) is not None]
        top = min(tops, key=lambda entry: entry[0], default=None)
        if top is None:
            return []
        (least, _), shape = top[0], top[2].shape
        self._virtual = max(self._virtual, least)
        batch: list[Job] = []
        frames, most, nbytes = 0, min(most, self.batch_frames), 0
        enough = most if self._bulk_batches > _QUIET_BATCHES else min(most, self.pace.frames_for(_OVERHEAD))
        self._bulk_batches += 1
        while top is not None:
            lane = top[2]
            job = next(iter(lane.jobs))
            bulk = lane.flow.queued > most
            if batch and (
                frames + job.frames > (enough if bulk else most) or nbytes + job.nbytes > self.headroom.nbytes
            ):
                break
            if not bulk:
                self._bulk_batches = 0
            self._take(lane, job)
            lane.flow.tag += job.frames
            frames += job.frames
            nbytes += job.nbytes
            batch.append(job)
            top = self._top(shape, now, ready)
        if len(self._flows) > self._flows_kept:
            self._forget_idle_flows()
        return batch

    def wake(self, key: AdapterKey) -> None:
        """Lets the jobs of an adapter that has become resident compete again."""
        for lane in self._parked.pop(key, ()):
            lane.parked = False
            if lane.jobs:
                self._compete(lane, len(lane.jobs))
            else:
                self._drop(lane)

    def remove(self, key: AdapterKey) -> list[Job]:
        """Takes every job of one adapter version out of the queue."""
        removed = [job for lane in self._lanes.get(key, {}).values() for job in lane.jobs]
        for job in removed:
            self.discard(job)
        self.wake(key)
        return removed

    def _compete(self, lane: _Lane, jobs: int) -> None:
        """Counts jobs in that can run from now on, and sees to it that their lane has its entry."""
        flow = lane.flow
        if not flow.runnable:
            flow.tag = max(flow.tag, self._virtual - int(_CREDIT_SECONDS * self.pace.rate))
        flow.runnable += jobs
        if not lane.entered:
            lane.entered = True
            self._sequence += 1
            heapq.heappush(self._heaps.setdefault(lane.shape, []), (_tag(lane), self._sequence, lane))

    def _take(self, lane: _Lane, job: Job) -> None:
        del lane.jobs[job]
        if not lane.parked:
            lane.flow.runnable -= 1
        self._queued[job.key] -= 1
        if not self._queued[job.key]:
            del self._queued[job.key]
        lane.flow.queued -= job.frames

    def _top(self, shape: Hashable, now: float, ready: Callable[[Job], bool]) -> _Entry | None:
        """The entry of the first lane of `shape` that can run, its first job alive; puts right what it meets."""
        heap = self._heaps[shape]
        while heap:
            tag, number, lane = heap[0]
            while lane.jobs and (job := next(iter(lane.jobs))).abandoned(now):
                self._take(lane, job)
            if lane.jobs and _tag(lane) != tag:
                heapq.heapreplace(heap, (_tag(lane), number, lane))
            elif lane.jobs and ready(next(iter(lane.jobs))):
                return heap[0]
            else:
                heapq.heappop(heap)
                lane.entered = False
                if lane.jobs:
                    self._park(lane)
                else:
                    self._drop(lane)
        del self._heaps[shape]
        return None

    def _park(self, lane: _Lane) -> None:
        lane.parked = True
        lane.flow.runnable -= len(lane.jobs)
        self._parked.setdefault(lane.key, []).append(lane)

    def _drop(self, lane: _Lane) -> None:
        lanes = self._lanes[lane.key]
        del lanes[lane.shape]
        if not lanes:
            del self._lanes[lane.key]

    def _forget_idle_flows(self) -> None:
        """Forgets the tags that would be lifted anyway."""
        queued = {id(lane.flow) for lanes in self._lanes.values() for lane in lanes.values()}
        self._flows = {
            name: flow for name, flow in self._flows.items() if flow.tag > self._virtual or id(flow) in queued
        }
        self._flows_kept = max(_FLOWS_KEPT, 2 * len(self._flows))


def _tag(lane: _Lane) -> _Tag:
    return lane.flow.tag, next(iter(lane.jobs.values()))
