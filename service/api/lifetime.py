"""How long a request may live: until its deadline, and only while its client is there. Knows no audio."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from service.api.bodies import Reservation
from service.api.context import Context, Runtime, context_of
from service.errors import DeadlineExceeded, InvalidRequest, NotReady

TIMEOUT_HEADER: Final = "X-Request-Timeout-Ms"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Admission:
    """One request that the service has begun to answer.

    Args:
        deadline: on the clock of `time.monotonic`, seconds.
    """

    request: Request
    context: Context
    runtime: Runtime
    reservation: Reservation
    deadline: float


@asynccontextmanager
async def admitted(request: Request) -> AsyncIterator[Admission]:
    """Holds a request's share of the memory and ends it at its deadline.

    Raises:
        NotReady: the runtime is not open yet, or what is inside took longer than a stopping service allows.
        DeadlineExceeded: it took longer than the setting, or the request's own header, allows.
    """
    context = context_of(request)
    runtime = context.runtime
    seconds = _timeout(request, context.settings.request_timeout)
    deadline = time.monotonic() + seconds
    with context.budget.reservation() as reservation:
        timer = asyncio.timeout(seconds)
        try:
            async with timer:
                with context.deadline(timer):
                    yield Admission(request, context, runtime, reservation, deadline)
        except TimeoutError as error:
            if not timer.expired():
                raise
            if context.draining and time.monotonic() < deadline:
                raise NotReady("the service is stopping, and the request was not answered in time") from error
            raise DeadlineExceeded(f"the request was not answered within {seconds:g} s") from error


def _timeout(request: Request, most: float) -> float:
    header = request.headers.get(TIMEOUT_HEADER)
    if header is None:
        return most
    if not (header.isdecimal() and len(header) < 10 and int(header) > 0):
        raise InvalidRequest(f"{TIMEOUT_HEADER} must be a whole number of milliseconds above 0, got {header[:50]!r}")
    return min(most, int(header) / 1000)


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled as soon as the client has gone. The body must have been read.

    Raises:
        ClientDisconnect: the client has gone; there is nobody to answer.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
