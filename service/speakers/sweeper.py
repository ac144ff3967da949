"""A thread that removes what has expired and what is left of deleted voiceprints, now and then."""

import logging
import threading
from datetime import timedelta
from typing import Final

from service.errors import ServiceError
from service.speakers.store import SpeakerStore

SWEEP_SECONDS: Final = 30.0
_log = logging.getLogger(__name__)


class Sweeper:
    """Sweeps a store once it is started, and again and again.

    Args:
        uses_kept: how long the journal's rows are.
    """

    def __init__(self, uses_kept: timedelta, seconds: float = SWEEP_SECONDS) -> None:
        self._uses_kept = uses_kept
        self._seconds = seconds
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, store: SpeakerStore) -> None:
        def run() -> None:
            while True:
                try:
                    store.sweep(self._uses_kept)
                except ServiceError as error:  # the database is away, or busy: later
                    _log.warning("what has expired is not removed yet: %s", error.detail)
                except Exception:
                    _log.exception("removing what has expired failed")
                if self._stopping.wait(self._seconds):
                    return

        self._thread = threading.Thread(target=run, name="sweeper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends it; what it is at is waited for, for a moment."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)
