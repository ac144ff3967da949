"""One request as the routes see it: whom it comes from, until when it may live, what it holds of the service."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, TypeVar
from urllib.parse import parse_qs

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from service.access.keyring import Caller
from service.api.bodies import Reservation, read_body
from service.api.context import Context, Lifetime, Pool, Runtime
from service.api.lines import Lines
from service.api.socket import Socket
from service.deadline import Deadline
from service.errors import DeadlineExceeded, InvalidRequest, Unauthorized

TIMEOUT_HEADER: Final = "X-Request-Timeout-Ms"
MAX_PARAMETERS: Final = 256  # in a query, beyond the adapters that a request may ask
COMMIT_SECONDS: Final = 1.0  # past a request's deadline, for a commit that has begun
_UNCHANGED: Final = "; nothing was changed"
_WATCH_SECONDS: Final = 0.1  # after which a client is looked after: most have their answer by then

T = TypeVar("T")


class Call(Request):
    """One request, from its head to its answer.

    Attributes:
        socket: of one that is a WebSocket.
        reader: whom it comes from, once that is known; `caller`, where the route needs a key.
        reservation: what it holds of the memory for bodies and decoded audio.
        lifetime: of a route that needs a key.
        answer_headers: what its answer carries, whatever it is.
        send: to the client.
        lines: its answer, where that is sent while it is made.
        status: of its answer, once that has begun.
        adapters, audio_seconds: for the log.
    """

    lifetime: Lifetime
    send: Send

    def __init__(self, scope: Scope, receive: Receive, context: Context) -> None:
        super().__init__(scope, receive)
        self.context = context
        self.socket: Socket | None = None
        self.reader: Caller | None = None
        self.reservation = Reservation(context.budget)
        self.answer_headers: Mapping[str, str] = {}
        self.lines: Lines | None = None
        self.status: int | None = None
        self.adapters: list[str] = []
        self.audio_seconds = 0.0
        self._query: dict[str, list[str]] | None = None

    @property
    def caller(self) -> Caller:
        """Whom it comes from. Raises Unauthorized where no key was asked for."""
        if self.reader is None:
            raise Unauthorized("this call needs a key: Authorization: Bearer ...")
        return self.reader

    @property
    def runtime(self) -> Runtime:
        """Raises NotReady while it is not open."""
        return self.context.runtime

    @property
    def query(self) -> dict[str, list[str]]:
        """The values of each of the query's parameters, in their order. Raises InvalidRequest: too many of them."""
        if self._query is None:
            text, most = self.scope["query_string"], MAX_PARAMETERS + self.context.settings.max_adapters
            if text.count(b"&") >= most:
                raise InvalidRequest(f"a query has at most {most} parameters")
            self._query = parse_query(text)
        return self._query

    def begin(self) -> Lifetime:
        """Its lifetime, until the deadline: the setting's, or an earlier one of its own header.

        Raises:
            InvalidRequest: the header is no time.
        """
        seconds, header = self.context.settings.request_timeout, self.headers.get(TIMEOUT_HEADER)
        if header is not None:
            if not (header.isdecimal() and len(header) < 10 and int(header) > 0):
                told = f"must be a whole number of milliseconds above 0, got {header[:50]!r}"
                raise InvalidRequest(f"{TIMEOUT_HEADER} {told}")
            seconds = min(seconds, int(header) / 1000)
        self.lifetime = Lifetime(seconds, self.context.living)
        return self.lifetime

    @contextmanager
    def while_connected(self, read: asyncio.Event | None = None) -> Iterator[None]:
        """Ends what is inside as soon as the client has gone. The body must have been read, or is when `read` is set.

        Raises:
            ClientDisconnect: there is nobody to answer.
        """
        watching: list[asyncio.Task[None]] = []
        loop = asyncio.get_running_loop()
        timer = loop.call_later(_WATCH_SECONDS, lambda: watching.append(loop.create_task(self._watch(read))))
        try:
            yield
        finally:
            timer.cancel()
            for task in watching:
                task.cancel()

    async def _watch(self, read: asyncio.Event | None) -> None:
        if read is not None:
            await read.wait()
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.lifetime.end(ClientDisconnect())

    async def read(self, limit: int) -> bytes:
        """The whole body.

        Raises:
            PayloadTooLarge: longer than `limit` bytes. Overloaded: there is no memory for it now.
        """
        return await read_body(self, limit, self.reservation)

    @contextmanager
    def writing(self, pool: Pool) -> Iterator[None]:
        """A place in `pool`, from reading what is to change on. Raises Overloaded: there is none."""
        self.lifetime.outcome = _UNCHANGED
        with pool.place():
            yield

    async def change(self, pool: Pool, work: Callable[[Deadline], T]) -> T:
        """The outcome of a change, which is cancelled at the deadline: what is given up then never happens later.

        Raises:
            DeadlineExceeded: it was in the midst of its commit then, and did not end soon: nobody knows how it ends.
        """
        self.lifetime.outcome = _UNCHANGED
        deadline = Deadline(self.lifetime.deadline)
        running = asyncio.ensure_future(pool.run(work, deadline))
        running.add_done_callback(lambda task: task.cancelled() or task.exception())  # somebody has seen it
        try:
            changed = await asyncio.shield(running)
        except asyncio.CancelledError:
            if deadline.give_up():
                running.cancel()
                raise
        else:
            self.lifetime.outcome = ""
            return changed
        done, _ = await asyncio.wait({running}, timeout=COMMIT_SECONDS)
        if not done:
            raise DeadlineExceeded(
                "the request's time was over while its change was being committed, and whether that succeeds is not "
                "known yet: GET /v1/adapters/{name} and its history tell, and an upload repeated with its "
                "Idempotency-Key is answered as it was"
            )
        return running.result()


def parse_query(text: bytes) -> dict[str, list[str]]:
    """The values of each of a query's parameters, in their order."""
    return parse_qs(text.decode("latin-1"), keep_blank_values=True)
