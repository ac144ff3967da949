"""Whether the device can be used: a batch that does not come back, a device that fails on everything, a dead worker.

Knows no queue, no slots and no torch.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.errors import NotReady
from service.telemetry import Telemetry

_log = logging.getLogger(__name__)


class Health:
    """The state that readiness asks for.

    Args:
        timeout: seconds that a batch may take.
        on_break: called whenever the device cannot be used any more, with what to tell those who wait for it.

    Attributes:
        on_dead: called when only another process could use the device again.
    """

    def __init__(self, timeout: float, telemetry: Telemetry, on_break: Callable[[NotReady], None]) -> None:
        self.on_dead: Callable[[NotReady], None] = lambda error: None
        self._timeout = timeout
        self._telemetry = telemetry
        self._on_break = on_break
        self._lock = threading.Lock()
        self._fault: str | None = None
        self._rows = 0  # of the batch that runs
        self._watch = Watch(timeout, self._hangs, self._returned)

    @property
    def fault(self) -> str | None:
        """Why the device cannot be used, while it cannot."""
        return self._fault

    def start(self) -> None:
        self._watch.start()

    def stop(self) -> None:
        self._watch.stop()

    @contextmanager
    def running(self, rows: int) -> Iterator[None]:
        """Watches a forward of so many rows; called by the device's one worker."""
        self._rows = rows
        with self._watch.running():
            yield

    def broke(self, kind: str, fault: str) -> None:
        """Turns readiness off; `kind` is what the metric counts."""
        with self._lock:
            if self._fault is None:
                _log.error("not ready: %s", fault)
                self._telemetry.count_device_fault(kind)
            self._fault = fault
            self._telemetry.device_broken.set(1)
        self._on_break(NotReady(fault))

    def died(self, fault: str) -> None:
        """As `broke`, for good: those who wait are told, then `on_dead` is, which ends the process."""
        self.broke("dead", fault)
        self.on_dead(NotReady(fault))

    def works(self, how: str) -> None:
        """Turns readiness on again, if it was off."""
        with self._lock:
            if self._fault is not None:
                _log.warning("ready again: %s", how)
            self._fault = None
            self._telemetry.device_broken.set(0)

    def _hangs(self) -> None:
        self.broke("hang", f"the device has not returned from a batch of {self._rows} rows for {self._timeout:g} s")

    def _returned(self, seconds: float) -> None:
        self.works(f"the device has returned after {seconds:.1f} s")


class Watch:
    """Tells when something has run for longer than a limit, and when it has ended after all.

    Args:
        limit: seconds.
        on_hang: called once for each run past the limit, from the watch's own thread.
        on_return: called when such a run has ended, with the seconds that it took, from the thread that ran it.
    """

    def __init__(self, limit: float, on_hang: Callable[[], None], on_return: Callable[[float], None]) -> None:
        self._limit = limit
        self._on_hang = on_hang
        self._on_return = on_return
        self._since: float | None = None  # on the clock of time.monotonic, while something runs
        self._hangs = False
        self._stopped = False
        self._changed = threading.Condition()  # held around the callbacks, so that they come in order
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watches what is inside."""
        with self._changed:
            self._since = since = time.monotonic()
        try:
            yield
        finally:
            with self._changed:
                self._since = None
                if self._hangs:
                    self._hangs = False
                    self._on_return(time.monotonic() - since)

    def _look(self) -> None:
        """Sleeps until the present run could be over the limit; one that begins meanwhile cannot be so earlier."""
        with self._changed:
            while not self._stopped:
                if self._since is None or self._hangs:
                    left = self._limit
                else:
                    left = self._since + self._limit - time.monotonic()
                    if left <= 0:
                        self._hangs = True
                        self._on_hang()
                        left = self._limit
                self._changed.wait(left)
