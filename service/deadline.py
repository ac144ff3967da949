"""Until when a write may still be committed, agreed between the thread that writes and whoever waits for it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import DeadlineExceeded


class Deadline:
    """The end of a write's time. Thread-safe.

    A write calls `begin_commit` as its last step before the commit. Whoever waits calls `give_up` when it stops
    waiting: the two exclude each other, so that what was given up in time does not happen later.

    Args:
        at: on the clock of `time.monotonic`, seconds.
    """

    def __init__(self, at: float) -> None:
        self.at = at
        self._lock = threading.Lock()
        self._is_given_up = False
        self._is_committing = False

    @property
    def left(self) -> float:
        """Seconds; 0 once it is over."""
        return 0.0 if self._is_given_up else max(0.0, self.at - time.monotonic())

    def check(self) -> None:
        """Raise DeadlineExceeded once it is over."""
        if not self.left:
            raise DeadlineExceeded("the time for this change was over before it could be made; nothing was changed")

    @contextmanager
    def hold(self, lock: "threading.Lock | threading.Semaphore") -> Iterator[None]:
        """Hold a lock, waited for no longer than this. Raises DeadlineExceeded."""
        if not lock.acquire(timeout=min(self.left, threading.TIMEOUT_MAX)):
            raise DeadlineExceeded(
                "other changes were under way until the time for this one was over; nothing was changed"
            )
        try:
            yield
        finally:
            lock.release()

    def begin_commit(self) -> None:
        """The point of no return. Raises DeadlineExceeded once it is over."""
        with self._lock:
            self.check()
            self._is_committing = True

    def give_up(self) -> bool:
        """End it now: whether nothing is changed for certain; False where the commit has begun, however it ends."""
        with self._lock:
            self._is_given_up = True
            return not self._is_committing
