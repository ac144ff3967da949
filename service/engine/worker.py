"""The one thread that owns the device: takes batches, leases their slots, runs and answers them. Knows no requests."""

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

import torch

from service.engine.cores import use_cores
from service.engine.faults import Fault, fault_of
from service.engine.health import Health
from service.engine.job import Job, Rows
from service.engine.loader import Loader
from service.engine.runner import Outcome, Runner, rows_of, run_in_halves
from service.engine.shared import Shared
from service.engine.slots import State
from service.errors import Internal, NotReady, ServiceError
from service.registry.store import AdapterVersion

EXAMINE_SECONDS = 1.0  # between two looks at a device that fails

_log = logging.getLogger(__name__)


class Worker:
    """Runs batches until the device stops and nothing can run any more.

    Args:
        health: is told what the device does.
    """

    def __init__(self, runner: Runner, shared: Shared, loader: Loader, health: Health) -> None:
        self._runner = runner
        self._shared = shared
        self._slots, self._scheduler, self._telemetry = shared.slots, shared.scheduler, shared.telemetry
        self._loader = loader
        self._health = health
        self._cores = torch.get_num_threads()
        self._running: Sequence[Rows] = ()
        self._cold: list[AdapterVersion] = []  # whose jobs had their turn and could not run
        self._thread = threading.Thread(target=self._work, name="device", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout: float) -> bool:
        """Waits for the end of the last batch, if the worker was ever started; whether it has come."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        use_cores(self._cores)
        try:
            while (batch := self._schedule()) is not None:
                if batch:
                    self._answer(batch, self._run(batch))
                if self._shared.suspected and not self._examine():
                    return
        except BaseException:  # whatever it is: a service without its worker must not look ready
            _log.exception("the worker of the device died")
            self._health.broke("worker", "the thread that runs the device died; restart the service, its log says why")

    def fail_running(self, error: ServiceError) -> None:
        """Answers the batch that is on the device, if one is, without its results. Called with the lock held."""
        for rows in self._running:
            rows.job.fail(error)

    def _schedule(self) -> Sequence[Rows] | None:
        """Waits for jobs that can run and leases their slots; none where the device is to be examined first, and None
        when the device stops.
        """
        with self._shared.changed:
            while not self._shared.suspected:
                taken = self._scheduler.next_batch(time.monotonic(), self._is_resident)
                batch = [job for job in taken if job.future.set_running_or_notify_cancel()]
                self._running = [Rows(job, self._slots.lease(job.key), 0, job.rows) for job in batch]
                while self._cold:  # evicted since their jobs were queued, or still loading
                    self._loader.request(self._cold.pop())
                if batch:
                    return self._running
                if taken:
                    continue
                if self._shared.stopping:
                    return None
                self._shared.changed.wait(self._scheduler.pause(time.monotonic()))
            return ()

    def _is_resident(self, job: Job) -> bool:
        resident = self._slots.state(job.key) is State.RESIDENT
        if not resident:
            self._cold.append(job.version)
        return resident

    def _run(self, batch: Sequence[Rows]) -> "_Ran":
        """Runs a batch, in halves where it must be; what the device shows of itself meanwhile is learnt."""
        ran, count = _Ran(time.monotonic()), rows_of(batch)
        for rows in batch:
            self._telemetry.queue_seconds.observe(ran.started - rows.job.admitted)
        self._telemetry.batch_rows.observe(count)
        self._telemetry.batch_adapters.observe(len({rows.slot for rows in batch}))

        def failed(fault: Fault, part: Sequence[Rows]) -> None:
            ran.faults.append(fault)
            self._telemetry.device_faults.labels(fault).inc()
            if fault is Fault.MEMORY:
                self._scheduler.headroom.refused(_bytes(part))
                self._runner.free_cached_memory()

        with self._health.running(count), self._telemetry.inference_seconds.time():
            ran.outcomes = run_in_halves(self._runner.run, batch, failed)
        return ran

    def _answer(self, batch: Sequence[Rows], ran: "_Ran") -> None:
        """Gives the slots back, then everyone their values, or why there are none."""
        failed = [outcome for outcome in ran.outcomes if isinstance(outcome, Fault)]
        with self._shared.changed:
            self._running = ()
            if not ran.faults:  # what ran in pieces would teach a pace that no whole batch has
                frames = sum(rows.job.frames for rows in batch)
                self._scheduler.pace.observe(frames, time.monotonic() - ran.started)
                self._scheduler.headroom.fitted(_bytes(batch))
            self._shared.suspected |= Fault.DEVICE in ran.faults or len(failed) == len(batch)
            for rows in batch:
                self._slots.release(rows.job.key)
            self._loader.advance()
        for rows, outcome in zip(batch, ran.outcomes, strict=True):
            if isinstance(outcome, Fault):
                rows.job.fail(_error(outcome))
            else:
                with suppress(InvalidStateError):
                    rows.job.future.set_result(outcome)

    def _examine(self) -> bool:
        """Whether the device can be used: was it the batch, or does the device fail on everything now?

        A device that fails with an error of CUDA's own is lost to this process.
        """
        self._shared.suspected = False
        while (fault := self._fault()) is not None:
            if fault is Fault.DEVICE:
                self._health.died("the device's context is dead, as only a new process can have another; it ends")
                return False
            self._health.broke("device", "the device fails whatever it is asked; the log has the cause")
            with self._shared.changed:
                if self._shared.changed.wait_for(lambda: self._shared.stopping, EXAMINE_SECONDS):
                    return False
        self._health.works("the device runs again")
        return True

    def _fault(self) -> Fault | None:
        """What goes wrong with one row of the bare backbone."""
        try:
            with self._health.running(rows=1):
                self._runner.warm_up()
        except Exception as error:
            _log.exception("the device fails on the bare backbone")
            return fault_of(error)
        return None


@dataclass(slots=True)
class _Ran:
    """What became of a batch: an outcome for each of its parts, and the faults on the way."""

    started: float  # on the clock of time.monotonic
    outcomes: list[Outcome] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


def _error(fault: Fault) -> ServiceError:
    if fault is Fault.MEMORY:
        return NotReady("the device has no memory left, not even for one window; try again when it is less busy")
    return Internal("the device failed while it ran the request; the log has the cause")


def _bytes(batch: Sequence[Rows]) -> int:
    return sum(rows.job.nbytes * rows.count // rows.job.rows for rows in batch)
