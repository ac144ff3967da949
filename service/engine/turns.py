"""A few at a time, flows in turn: who may use the threads that decode and compute features. Knows no audio.

A thread pool alone serves first come, first served: whoever sends most would hold up everyone else's decoding.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """Lets `width` at a time through, one of each waiting flow in turn. Used from one event loop."""

    def __init__(self, width: int) -> None:
        self._free = width
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def turn(self, flow: str) -> AsyncIterator[None]:
        """Waits for the flow's turn and keeps it inside; who is cancelled while waiting is passed over."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(flow)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, flow: str) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(flow, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it came at the same moment
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            flow, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._waiting[flow] = turns
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
