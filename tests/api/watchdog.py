"""How long a running service keeps its event loop, or the interpreter, from everybody else.

A busy machine wakes sleepers late by itself. So a delay counts as far as the process computed meanwhile: whoever holds
the loop or the interpreter computes, and whoever waits for a processor does not.
"""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

TICK = 0.002  # seconds


@dataclass(slots=True)
class Watch:
    """The longest delays seen, seconds."""

    loop: float = 0.0
    interpreter: float = 0.0

    async def watch_loop(self) -> None:
        while True:
            started, computed = time.monotonic(), time.thread_time()
            await asyncio.sleep(TICK)
            self.loop = max(self.loop, min(time.monotonic() - started - TICK, time.thread_time() - computed))

    def watch_interpreter(self, stop: threading.Event) -> None:
        while not stop.is_set():
            started, computed = time.monotonic(), time.process_time()
            time.sleep(TICK)
            late = min(time.monotonic() - started - TICK, time.process_time() - computed)
            self.interpreter = max(self.interpreter, late)


@contextmanager
def watching(loop: asyncio.AbstractEventLoop) -> Iterator[Watch]:
    """Watches the process, and the loop of the server in it."""
    watch, stop = Watch(), threading.Event()
    of_loop = asyncio.run_coroutine_threadsafe(watch.watch_loop(), loop)
    of_interpreter = threading.Thread(target=watch.watch_interpreter, args=(stop,))
    of_interpreter.start()
    try:
        yield watch
    finally:
        of_loop.cancel()
        stop.set()
        of_interpreter.join()
