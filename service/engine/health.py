"""Whether the device can be used: a batch that does not come back, a device that fails on everything, a dead worker.

Knows no queue, no slots and no torch.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from service.errors import NotReady
from service.telemetry import Telemetry

_log = logging.getLogger(__name__)


class Health:
    """The state that readiness asks for.

    Args:
        timeout: seconds that a batch may take.
        on_break: called whenever the device cannot be used any more, with what to tell those who wait for it.

    Attributes:
        fault: why the device cannot be used, while it cannot.
        on_dead: called when only another process could use the device again.
    """

    def __init__(self, timeout: float, telemetry: Telemetry, on_break: Callable[[NotReady], None]) -> None:
        self.on_dead: Callable[[NotReady], None] = lambda error: None
        self._timeout = timeout
        self._telemetry = telemetry
        self._on_break = on_break
        self._lock = threading.Lock()
        self.fault: str | None = None
        self._watch = Watch(timeout)

    def start(self) -> None:
        self._watch.start()

    def stop(self) -> None:
        self._watch.stop()

    @contextmanager
    def running(self, rows: int) -> Iterator[None]:
        """Watches a forward of so many rows; called by the device's one worker."""
        fault = f"the device has not returned from a batch of {rows} rows for {self._timeout:g} s"
        with self._watch.running(lambda: self.broke("hang", fault)) as run:
            yield
        if run.hangs:
            self.works(f"the device has returned after {time.monotonic() - run.started:.1f} s")

    def broke(self, kind: str, fault: str) -> None:
        """Turns readiness off; `kind` is what the metric counts: `hang`, `device`, `dead` or `worker`."""
        with self._lock:
            if self.fault is None:
                _log.error("not ready: %s", fault)
                self._telemetry.device_faults.labels(kind).inc()
            self.fault = fault
            self._telemetry.device_broken.set(1)
        self._on_break(NotReady(fault))

    def died(self, fault: str) -> None:
        """As `broke`, for good: those who wait are told, then `on_dead` is, which ends the process."""
        self.broke("dead", fault)
        self.on_dead(NotReady(fault))

    def works(self, how: str) -> None:
        """Turns readiness on again, if it was off."""
        with self._lock:
            if self.fault is not None:
                _log.warning("ready again: %s", how)
            self.fault = None
            self._telemetry.device_broken.set(0)


@dataclass(slots=True, eq=False)
class Run:
    """Something that is watched; `hangs` once it has taken longer than the limit."""

    on_hang: Callable[[], None]
    started: float = field(default_factory=time.monotonic)
    hangs: bool = False


class Watch:
    """Tells when something has run for longer than a limit.

    Args:
        limit: seconds.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._runs: dict[Run, None] = {}  # those within the limit, in the order in which they began
        self._stopped = False
        self._changed = threading.Condition()  # held around `on_hang`, which has ended when the run has
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    @contextmanager
    def running(self, on_hang: Callable[[], None]) -> Iterator[Run]:
        """Watches what is inside, and calls `on_hang`, from the watch's own thread, once it is past the limit."""
        run = Run(on_hang)
        with self._changed:
            self._runs[run] = None
        try:
            yield run
        finally:
            with self._changed:
                self._runs.pop(run, None)

    def _look(self) -> None:
        """Sleeps until the oldest run could be over the limit; one that begins meanwhile cannot be so earlier."""
        with self._changed:
            while not self._stopped:
                left = self._limit
                if run := next(iter(self._runs), None):
                    left += run.started - time.monotonic()
                    if left <= 0:
                        del self._runs[run]
                        run.hangs = True
                        run.on_hang()
                        continue
                self._changed.wait(left)
