"""The one thread that owns the device: takes batches, leases their slots, runs and answers them. Knows no requests."""

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

import torch

from service.engine.cores import use_cores
from service.engine.health import Health
from service.engine.job import Job
from service.engine.loader import Loader
from service.engine.runner import Runner, Values
from service.engine.scheduler import Scheduler
from service.engine.slots import Slots, State
from service.errors import Internal, ServiceError
from service.registry.store import AdapterVersion
from service.telemetry import Telemetry

EXAMINE_SECONDS = 1.0  # between two looks at a device that fails

_log = logging.getLogger(__name__)


class Worker:
    """Runs batches until it is told to stop and nothing can run any more.

    Args:
        changed: the engine's lock; notified when there may be something to run.
        health: is told what the device does.

    Attributes:
        stopping: set with `changed` held.
    """

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        slots: Slots,
        loader: Loader,
        telemetry: Telemetry,
        changed: threading.Condition,
        health: Health,
    ) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._slots = slots
        self._loader = loader
        self._telemetry = telemetry
        self._changed = changed
        self._health = health
        self._cores = torch.get_num_threads()
        self._running: Sequence[Job] = ()
        self._cold: list[AdapterVersion] = []  # whose jobs had their turn and could not run
        self.stopping = False

    def work(self) -> None:
        """The worker: takes batches and runs them until the engine stops."""
        use_cores(self._cores)
        try:
            while (leased := self._next_batch()) is not None:
                batch, slots = leased
                started = time.monotonic()
                with self._health.running(_rows(batch)):
                    ran = self._run(batch, slots)
                with self._changed:
                    self._running = ()
                    self._scheduler.observe(sum(job.frames for job in batch), time.monotonic() - started)
                    for job in batch:
                        self._slots.release(job.key)
                    self._loader.advance()
                if not ran:
                    self._examine()
        except BaseException:  # whatever it is: a service without its worker must not look ready
            _log.exception("the worker of the device died")
            self._health.broke("worker", "the thread that runs the device died; restart the service, its log says why")

    def fail_running(self, error: ServiceError) -> None:
        """Answers the batch that is on the device, if one is, without its results. Called with `changed` held."""
        for job in self._running:
            job.fail(error)

    def _next_batch(self) -> tuple[list[Job], list[int]] | None:
        """Waits for jobs that can run and leases their slots; None when the engine stops."""
        with self._changed:
            while True:
                taken = self._scheduler.next_batch(time.monotonic(), self._is_resident)
                batch = [job for job in taken if job.future.set_running_or_notify_cancel()]
                slots = [self._slots.lease(job.key) for job in batch]
                while self._cold:  # evicted since their jobs were queued, or still loading
                    self._loader.request(self._cold.pop())
                if batch:
                    self._running = batch
                    return batch, slots
                if taken:
                    continue
                if self.stopping:
                    return None
                self._changed.notify_all()  # `stop` may be waiting for an empty queue
                self._changed.wait()

    def _is_resident(self, job: Job) -> bool:
        resident = self._slots.state(job.key) is State.RESIDENT
        if not resident:
            self._cold.append(job.version)
        return resident

    def _run(self, batch: Sequence[Job], slots: Sequence[int]) -> bool:
        started = time.monotonic()
        for job in batch:
            self._telemetry.queue_seconds.observe(started - job.admitted)
        self._telemetry.batch_rows.observe(_rows(batch))
        self._telemetry.batch_adapters.observe(len(set(slots)))
        with self._telemetry.inference_seconds.time():
            return self._answer(batch, slots)

    def _answer(self, batch: Sequence[Job], slots: Sequence[int], *, may_halve: bool = True) -> bool:
        """Runs a batch and answers its jobs; on a device error it is halved once, and only what fails again fails.

        Returns:
            Whether any of it ran.
        """
        try:
            values = self._runner.run(batch, slots)
        except Exception as error:
            starved = _is_out_of_memory(error)
            _log.exception("a batch failed on the device", extra={"jobs": len(batch), "rows": _rows(batch)})
        else:
            for job, value in zip(batch, values, strict=True):
                _settle(job.future, value)
            return True
        # Only now: within the handler, the error's trace holds all that the forward had allocated.
        self._telemetry.count_device_fault("memory" if starved else "error")
        if starved:
            self._runner.free_cached_memory()
        if may_halve and len(batch) > 1:
            half = len(batch) // 2
            first = self._answer(batch[:half], slots[:half], may_halve=False)
            return self._answer(batch[half:], slots[half:], may_halve=False) or first
        what = f"ran out of memory on {_rows(batch)} rows" if starved else "failed while it ran the request"
        for job in batch:
            job.fail(Internal(f"the device {what}; the log has the cause"))
        return False

    def _examine(self) -> None:
        """After a batch of which nothing ran: was it the batch, or does the device fail on everything now?"""
        while not self._works():
            self._health.broke("device", "the device fails whatever it is asked; the log has the cause")
            with self._changed:
                if self._changed.wait_for(lambda: self.stopping, EXAMINE_SECONDS):
                    return
        self._health.works("the device runs again")

    def _works(self) -> bool:
        try:
            with self._health.running(rows=1):
                self._runner.warm_up()
        except Exception:
            _log.exception("the device fails on the bare backbone")
            return False
        return True


def _is_out_of_memory(error: Exception) -> bool:
    """PyTorch has a type for it on GPUs only."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _rows(batch: Sequence[Job]) -> int:
    return sum(job.rows for job in batch)


def _settle(future: "Future[Values]", value: Values) -> None:
    with suppress(InvalidStateError):
        future.set_result(value)
