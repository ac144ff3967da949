"""What the routes share: settings, metrics and, once it is open, the runtime behind them. Knows no routes."""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from fastapi import Request

from service.access.keyring import Keyring
from service.access.limits import Gate
from service.api.bodies import Budget
from service.api.pools import DISK_THREADS, SPEAKER_PLACES, WRITE_THREADS, Pool
from service.api.statistics import Statistics
from service.engine.engine import Engine
from service.errors import NotReady
from service.model.spec import BackboneSpec
from service.registry.store import Registry
from service.settings import Settings
from service.speakers.galleries import Galleries
from service.speakers.store import SpeakerStore
from service.speakers.sweeper import Sweeper
from service.telemetry import Telemetry


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


Opener = Callable[[Settings, Telemetry], Runtime]


class Context:
    """State of one application.

    Attributes:
        draining: whether the service is on its way out: still answering, no longer ready.
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
        self.gate = Gate()
        self.writers = Pool("changes of adapters", WRITE_THREADS)
        self.disk = Pool("reads of the registry", DISK_THREADS)
        self.speaking = Pool("uses of speakers", WRITE_THREADS, SPEAKER_PLACES)
        self.scrapes = Pool("readings of the metrics", 1)
        self._opener = ThreadPoolExecutor(1, thread_name_prefix="open")
        self._runtime: Runtime | None = None
        self._sweeper = Sweeper(timedelta(days=settings.speaker_audit_days))
        self._closed = False
        self._deadlines: set[asyncio.Timeout] = set()  # of the requests in flight
        self._drained_at = math.inf  # when the last of them has ended, on the clock of time.monotonic
        self._lock = threading.Lock()

    @property
    def runtime(self) -> Runtime:
        """The opened runtime; raises NotReady before that."""
        if self._runtime is None:
            raise NotReady("the backbone is still loading; /readyz answers 200 when it is done", retry_after=1.0)
        return self._runtime

    def check_ready(self) -> None:
        """Raises NotReady, with the reason, unless new requests would be answered."""
        if self.draining:
            raise NotReady("the service is stopping: it finishes what it was asked before")
        self.runtime.engine.check_ready()

    @contextmanager
    def deadline(self, timer: asyncio.Timeout) -> Iterator[None]:
        """Lets a drain bring forward the deadline of a request in flight. Used from the event loop only."""
        self._deadlines.add(timer)
        try:
            yield
        finally:
            self._deadlines.discard(timer)

    def drain(self, seconds: float) -> None:
        """Gives the requests in flight `seconds` at most from now on. Called from the event loop."""
        self.draining = True
        self._drained_at = time.monotonic() + seconds
        last = asyncio.get_running_loop().time() + seconds
        for timer in self._deadlines:
            when = timer.when()
            if not timer.expired() and (when is None or when > last):
                timer.reschedule(last)

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
                self._sweeper.start(runtime.speakers)
                return runtime
        runtime.engine.stop(0.0)
        runtime.registry.close()
        runtime.speakers.close()
        raise NotReady("the service is stopping")

    def close(self) -> None:
        """Stops the engine, once the server lets no more requests in."""
        with self._lock:
            self._closed = True
            runtime, self._runtime = self._runtime, None
        if runtime is not None:
            seconds = min(self._drained_at - time.monotonic(), self.settings.shutdown_timeout)
            self.device_stopped = runtime.engine.stop(max(0.0, seconds))
            self._sweeper.stop()
            runtime.registry.close()
            runtime.speakers.close()
        for pool in (self.writers, self.disk, self.speaking, self.scrapes):
            pool.close()
        self._opener.shutdown(wait=False)


def context_of(request: Request) -> Context:
    """The context of the application that serves `request`."""
    context: Context = request.app.state.context
    return context
