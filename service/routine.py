"""Something that is done again and again in a thread of its own, and knows since when it fails."""

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime

from service.errors import ServiceError

_logger = logging.getLogger(__name__)


class Routine:
    """Does `work` now and then, whatever became of it the time before.

    Args:
        name: of what it does, for the log, as in "following the catalogue".
        work: raises ServiceError where it cannot be done now.

    Attributes:
        fault: since when and why it fails; None while all is well.
    """

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        self.fault: str | None = None
        self._name = name
        self._work = work
        self._lock = threading.Lock()  # held while it is done
        self._is_stopping = False
        self._due = threading.Event()
        self._thread: threading.Thread | None = None

    def once(self) -> None:
        """Do it once. Raises nothing."""
        try:
            with self._lock:
                self._work()
        except Exception as error:
            is_foreseen = isinstance(error, ServiceError)
            if not is_foreseen:
                _logger.exception("%s failed", self._name)
            if self.fault is None:
                told = str(error) if is_foreseen else "an error that nobody foresaw; the log has it"
                _logger.error("%s fails: %s", self._name, told)
                self.fault = f"since {datetime.now(UTC).isoformat(timespec='seconds')}: {told}"
        else:
            if self.fault is not None:
                _logger.info("%s works again", self._name)
            self.fault = None

    def start(
        self, seconds: float | Callable[[], float], on_turn: Callable[[bool], None] = lambda is_well: None
    ) -> None:
        """Do it now and every so many seconds until `stop`, and tell each time whether all is well."""

        def run() -> None:
            while not self._is_stopping:
                self._due.clear()
                self.once()
                on_turn(self.fault is None)
                if not self._is_stopping:
                    self._due.wait(seconds() if callable(seconds) else seconds)

        self._thread = threading.Thread(target=run, name=self._name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Do it at once, once more if it is being done; only from `start` on."""
        self._due.set()

    def stop(self, seconds: float | None = None) -> None:
        """End it; a turn that is under way is waited for, for no longer than `seconds` where they are given."""
        self._is_stopping = True
        self._due.set()
        if self._thread is not None:
            self._thread.join(seconds)
