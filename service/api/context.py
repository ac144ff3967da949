"""What the routes share: settings, metrics, threads for work that waits, the runtime, a request's lifetime."""

import asyncio
import contextvars
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Final, ParamSpec, Self, TypeVar

from service.access.keyring import Keyring
from service.access.limits import Gate
from service.api.bodies import Budget
from service.api.statistics import Statistics
from service.database import database_of
from service.engine.engine import Engine
from service.errors import DeadlineExceeded, NotReady, Overloaded, ServiceError
from service.jobs.store import JobStore
from service.model.spec import BackboneSpec
from service.notices import Notices, Topic
from service.registry.store import Registry
from service.settings import Settings
from service.speakers.galleries import Cohorts, Galleries
from service.speakers.store import SpeakerStore
from service.telemetry import Telemetry

WRITE_THREADS: Final = 8  # the database has one writer at a time; the others check what they will write
DISK_THREADS: Final = 8
SPEAKER_PLACES: Final = 256
PLACES: Final = 64  # requests that use one pool at once, those that wait for a thread of it included
TELL_SECONDS: Final = 0.25  # between what servers tell each other of the limits of keys
RETRY_SECONDS: Final = 2.0

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Runtime:
    """Everything that takes time to open: the backbone, on its device, with its adapters.

    Args:
        device: where the backbone runs, as `torch.device` prints it.
        dtype: precision that it runs in, as in `float32`.
    """

    backbone: BackboneSpec
    device: str
    dtype: str
    registry: Registry
    engine: Engine
    speakers: SpeakerStore
    galleries: Galleries
    cohorts: Cohorts
    jobs: JobStore

    def close(self) -> None:
        """Give back what is held of files and databases."""
        self.registry.close()
        self.speakers.close()
        self.jobs.close()


Opener = Callable[[Settings, Telemetry], Runtime]


class Context:
    """State of one application.

    Attributes:
        draining: whether the service is on its way out: still answering, no longer ready.
        living: of the requests in flight that have a deadline.
        device_stopped: False when the device had not returned from its last batch as the service closed.
    """

    def __init__(self, settings: Settings, telemetry: Telemetry) -> None:
        self.settings = settings
        self.telemetry = telemetry
        self.draining = False
        self.device_stopped = True
        self.budget = Budget(settings.inflight_mb * 2**20)
        self.statistics = Statistics()
        self.keys = Keyring(settings)
        self.notices = Notices(database_of(settings.data_dir, settings.database_url))
        self.gate = Gate()
        self.writers = Pool("changes of adapters", WRITE_THREADS)
        self.disk = Pool("reads of the registry", DISK_THREADS)
        self.speaking = Pool("uses of speakers", WRITE_THREADS, SPEAKER_PLACES)
        self.queueing = Pool("uses of jobs", DISK_THREADS)
        self.spooling = Pool("uploads of jobs", DISK_THREADS)  # each of which may take hours
        self.streams = 0  # open
        self.job_came = asyncio.Event()
        self.scrapes = Pool("readings of the metrics", 1)
        self._opener = ThreadPoolExecutor(1, thread_name_prefix="open")
        self._runtime: Runtime | None = None
        self._closed = False
        self.living: set[Lifetime] = set()
        self._drained_at = math.inf  # when the last of them has ended, on the clock of time.monotonic
        self._lock = threading.Lock()

    @property
    def runtime(self) -> Runtime:
        """The opened runtime; raises NotReady before that."""
        if self._runtime is None:
            raise NotReady("the backbone is still loading; /readyz answers 200 when it is done", retry_after=1.0)
        return self._runtime

    @contextmanager
    def streaming(self) -> Iterator[None]:
        """A place for one stream of live audio. Raises Overloaded."""
        if self.streams >= self.settings.max_streams:
            raise Overloaded(f"{self.streams} streams are open already; try again later", retry_after=RETRY_SECONDS)
        self.streams += 1
        self.telemetry.streams.set(self.streams)
        try:
            yield
        finally:
            self.streams -= 1
            self.telemetry.streams.set(self.streams)

    async def share_limits(self) -> None:
        """Tells other servers what keys have used here, and counts what they used there, until it is cancelled."""
        loop = asyncio.get_running_loop()
        self.notices.on(Topic.LIMITS, lambda told: loop.call_soon_threadsafe(self.gate.hear, told))
        while True:
            for told in self.gate.tell():
                self.notices.tell(Topic.LIMITS, told)
            await asyncio.sleep(TELL_SECONDS)

    def check_ready(self) -> None:
        """Raises NotReady, with the reason, unless new requests would be answered."""
        if self.draining:
            raise NotReady("the service is stopping: it finishes what it was asked before")
        self.runtime.engine.check_ready()

    def drain(self, seconds: float) -> None:
        """Gives the requests in flight `seconds` at most from now on. Called from the event loop."""
        self.draining = True
        self._drained_at = time.monotonic() + seconds
        for lifetime in self.living:
            lifetime.shorten(seconds)

    async def open_beside(self, open_runtime: Opener, on_dead: Callable[[Exception], None]) -> Runtime:
        """As `open`, in a thread that nothing waits for at the end."""
        return await asyncio.get_running_loop().run_in_executor(self._opener, self.open, open_runtime, on_dead)

    def open(self, open_runtime: Opener, on_dead: Callable[[Exception], None]) -> Runtime:
        """Opens the runtime and starts its engine; slow. `on_dead` is called if the device is lost for good."""
        runtime = open_runtime(self.settings, self.telemetry)
        runtime.engine.start(on_dead)
        with self._lock:
            if not self._closed:
                self._runtime = runtime
                runtime.registry.follow(on_reachable=self.telemetry.registry_up.set, notices=self.notices)
                runtime.speakers.keep_swept(timedelta(days=self.settings.speaker_audit_days))
                runtime.jobs.keep_swept()
                return runtime
        runtime.engine.stop(0.0)
        runtime.close()
        raise NotReady("the service is stopping")

    def close(self) -> None:
        """Stops the engine, once the server lets no more requests in."""
        with self._lock:
            self._closed = True
            runtime, self._runtime = self._runtime, None
        self.notices.close()
        if runtime is not None:
            seconds = min(self._drained_at - time.monotonic(), self.settings.shutdown_timeout)
            self.device_stopped = runtime.engine.stop(max(0.0, seconds))
            runtime.close()
        for pool in (self.writers, self.disk, self.speaking, self.queueing, self.spooling, self.scrapes):
            pool.close()
        self._opener.shutdown(wait=False)


class Pool:
    """Threads that requests take turns at. Used from one event loop.

    Args:
        what: the work, for the caller to read, as in "changes of adapters".
        places: requests that may use the pool at once; more are refused, never queued.
    """

    def __init__(self, what: str, threads: int, places: int = PLACES) -> None:
        self._what = what
        self._places = places
        self._taken = 0
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=what.partition(" ")[0])

    @contextmanager
    def place(self) -> Iterator[None]:
        """One request's right to `run`.

        Raises:
            Overloaded: all places are taken.
        """
        if self._taken >= self._places:
            raise Overloaded(f"{self._taken} {self._what} are under way already; try again", retry_after=RETRY_SECONDS)
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    async def run(self, work: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """The result of `work`, run in a thread; work that has not begun when the caller is cancelled never does."""
        context = contextvars.copy_context()  # a thread's log lines carry the request's id
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: context.run(work, *args, **named)
        )

    async def once(self, work: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """As `run`, with a place for just that. Raises Overloaded."""
        with self.place():
            return await self.run(work, *args, **named)

    def close(self) -> None:
        """Starts nothing more; what runs is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class Lifetime:
    """Ends what a task does inside of it, at a deadline or when it is told to; as `asyncio.timeout` does.

    Args:
        seconds: from now to the deadline.
        living: has it while it lasts.

    Attributes:
        seconds: that it has, from its beginning or from when it was last renewed.
        deadline: on the clock of `time.monotonic`.
        outcome: what is known of what the task wanted, where it has ended; added to what the caller is told.
    """

    __slots__ = (
        *("_cancels", "_error", "_is_drained", "_living", "_loop", "_task", "_timer"),
        *("deadline", "outcome", "seconds"),
    )

    def __init__(self, seconds: float, living: "set[Lifetime]") -> None:
        self.deadline = time.monotonic() + seconds
        self.outcome = ""
        self.seconds = seconds
        self._living = living
        self._error: Exception | None = None  # what it is ended with
        self._is_drained = False

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a lifetime is a task's")
        self._task, self._cancels = task, task.cancelling()
        self._timer = self._loop.call_later(self.seconds, self._expire)
        self._living.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        self._living.discard(self)
        if self._error is not None and self._task.uncancel() <= self._cancels and kind is asyncio.CancelledError:
            if isinstance(self._error, ServiceError):
                self._error.detail += self.outcome
            raise self._error from error

    def end(self, error: Exception) -> None:
        """Ends it with `error`, unless it has ended. Called from the event loop."""
        if self._error is None:
            self._error = error
            self._task.cancel()

    def renew(self, seconds: float | None = None) -> None:
        """Gives it as long again, or so long; what is endless then ends as soon as the service stops.

        It has ended, or the service stops: nothing is changed. Called from the event loop.
        """
        if self._error is None and not self._is_drained:
            self.seconds = self.seconds if seconds is None else seconds
            self.deadline = time.monotonic() + self.seconds
            self._timer.cancel()
            self._timer = self._loop.call_later(self.seconds, self._expire)

    def shorten(self, seconds: float) -> None:
        """Leaves it `seconds` at most from now on, as the service stops. Called from the event loop."""
        if self._error is None and self._timer.when() > self._loop.time() + seconds:
            self._is_drained = True
            self._timer.cancel()
            seconds = 0.0 if math.isinf(self.seconds) else seconds
            self._timer = self._loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        if self._is_drained:
            self.end(NotReady("the service is stopping, and the request was not answered in time"))
        else:
            self.end(DeadlineExceeded(f"the request was not answered within {self.seconds:g} s"))
