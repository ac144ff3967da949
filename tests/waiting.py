"""Waiting for what another thread or process is about to do."""

import time
from collections.abc import Callable


def soon(condition: Callable[[], object], seconds: float) -> float:
    """Seconds until a condition held; it must within so many."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() < started + seconds, "it was not seen in time"
        time.sleep(0.01)
    return time.monotonic() - started
