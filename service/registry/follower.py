"""A thread that keeps up with what other processes do to the catalogue, and notices when that is out of reach."""

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime

from service.errors import ServiceError

_logger = logging.getLogger(__name__)


class Follower:
    """Calls `catch_up` again and again; `fault` says since when and why it cannot."""

    def __init__(self, catch_up: Callable[[], None]) -> None:
        self.fault: str | None = None
        self._catch_up = catch_up
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, seconds: float, on_reachable: Callable[[bool], None]) -> None:
        """Catch up every so many seconds, until `stop`."""

        def run() -> None:
            while not self._stopping.wait(seconds):
                self._try()
                on_reachable(self.fault is None)

        self._thread = threading.Thread(target=run, name="catalogue", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _try(self) -> None:
        try:
            self._catch_up()
        except ServiceError as error:
            if self.fault is None:
                self.fault = f"since {datetime.now(UTC).isoformat(timespec='seconds')}: {error.detail}"
                _logger.error("the catalogue cannot be followed: %s", error.detail)
        except Exception:
            _logger.exception("following the catalogue failed")
            self.fault = self.fault or "following the catalogue failed; the log has the cause"
        else:
            if self.fault is not None:
                _logger.info("the catalogue can be followed again")
            self.fault = None
