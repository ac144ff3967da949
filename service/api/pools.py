"""Threads for work that waits: a pool for each thing waited for, so that whoever waits holds up nobody else."""

import asyncio
import contextvars
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, ParamSpec, TypeVar

from service.deadline import Deadline
from service.errors import DeadlineExceeded, Overloaded

WRITE_THREADS: Final = 8  # the database has one writer at a time; the others check what they will write
DISK_THREADS: Final = 8
SPEAKER_PLACES: Final = 256
PLACES: Final = 64  # requests that use one pool at once, those that wait for a thread of it included
RETRY_SECONDS: Final = 2.0
COMMIT_SECONDS: Final = 1.0  # past a request's deadline, for a commit that has begun

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

    async def change(self, until: float, work: Callable[[Deadline], T]) -> T:
        """The outcome of a change, which is cancelled at its deadline: what is given up then never happens later.

        Args:
            until: on the clock of `time.monotonic`; `work` gets it as its Deadline.

        Raises:
            DeadlineExceeded: it was in the midst of its commit then, and did not end soon: nobody knows how it ends.
        """
        deadline = Deadline(until)
        running = asyncio.ensure_future(self.run(work, deadline))
        running.add_done_callback(lambda task: task.cancelled() or task.exception())  # somebody has seen it
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            if deadline.give_up():
                running.cancel()
                raise
        done, _ = await asyncio.wait({running}, timeout=COMMIT_SECONDS)
        if not done:
            raise DeadlineExceeded(
                "the request's time was over while its change was being committed, and whether that succeeds is not "
                "known yet: GET /v1/adapters/{name} and its history tell, and an upload repeated with its "
                "Idempotency-Key is answered as it was"
            )
        return running.result()

    async def once(self, work: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """As `run`, with a place for just that. Raises Overloaded."""
        with self.place():
            return await self.run(work, *args, **named)

    def close(self) -> None:
        """Starts nothing more; what runs is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)
