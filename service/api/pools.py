"""Threads for work that waits: a pool for each thing waited for, so that whoever waits holds up nobody else."""

import asyncio
import contextvars
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, ParamSpec, TypeVar

from service.errors import Overloaded

WRITE_THREADS: Final = 8  # the database has one writer at a time; the others check what they will write
DISK_THREADS: Final = 8
PLACES: Final = 64  # requests that use one pool at once, those that wait for a thread of it included
RETRY_SECONDS: Final = 2.0

P = ParamSpec("P")
T = TypeVar("T")


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
