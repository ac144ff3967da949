"""Waiting for what another thread or process is about to do."""

import time
from collections.abc import Callable

LOOK_SECONDS = 0.1  # that one look counts for at most


def soon(condition: Callable[[], object], seconds: float) -> float:
    """Seconds until a condition held; it must within so many.

    A look that takes long counts for little: on a machine that is paused, or busy with other work, those who are waited
    for stand still as well.
    """
    waited = 0.0
    while True:
        began = time.monotonic()
        if condition():
            return waited
        assert waited < seconds, "it was not seen in time"
        time.sleep(0.01)
        waited += min(time.monotonic() - began, LOOK_SECONDS)
