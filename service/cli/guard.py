"""One connection, bounded: how large a request's head may be, how long its head, body and reader may take.

Uvicorn's parser takes heads of any size and waits for them for ever; the routes bound what comes after. Knows
uvicorn and no routes.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, NoReturn

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.api.problems import problem

MAX_HEAD_BYTES: Final = 32 * 2**10  # of the request line and the header fields together
MAX_HANDSHAKE_BYTES: Final = 2**13  # of those of a WebSocket, as its parser takes no more in one line
MAX_FIELDS: Final = 100  # header fields, and trailers
MAX_PIPELINED: Final = 16  # requests sent before the answers to those before them
_GET_BYTES: Final = len("GET  HTTP/1.1\r\n")

_log = logging.getLogger("service.requests")


class Fault(NamedTuple):
    """Why a connection is not read on: the code of its answer, and the detail."""

    code: str
    detail: str


class GivenUp(Exception):
    """Ends the parser's work on a connection."""


HEAD_TOO_LARGE: Final = Fault(
    "head_too_large", f"a request's head is at most {MAX_HEAD_BYTES} bytes and {MAX_FIELDS} fields"
)
NO_HTTP: Final = Fault("bad_http", "what arrived is no HTTP/1.1 request")
HOSTS: Final = Fault("bad_http", "an HTTP/1.1 request has one Host field, which names a host (RFC 9112, section 3.2)")
CALLERS: Final = Fault(
    "bad_http", "a request has one Authorization field; a proxy and the service could each believe another one"
)
HANDSHAKE: Final = Fault(
    "head_too_large", f"the head of a WebSocket's handshake is at most {MAX_HANDSHAKE_BYTES} bytes"
)
PIPELINED: Final = Fault("bad_http", f"at most {MAX_PIPELINED} requests may be sent ahead of their answers")


@dataclass(frozen=True, slots=True)
class Limits:
    """Of the connections of one server; seconds.

    Args:
        head_seconds: from a connection's first moment, or a request's first byte on a kept one, to its head's end.
        body_seconds: from there to the body's end; longer than any request may take to be answered.
        write_seconds: without the client taking anything of an answer.
        connections: open at once; more are closed as they come.
    """

    head_seconds: float
    body_seconds: float
    write_seconds: float
    connections: int


class GuardedProtocol(HttpToolsProtocol):
    """Uvicorn's protocol with limits.

    Args:
        on_refusal: told the status of every answer given here, which no route sees.
    """

    def __init__(self, *args: Any, limits: Limits, on_refusal: Callable[[int], None], **named: Any) -> None:
        super().__init__(*args, **named)
        self._limits = limits
        self._on_refusal = on_refusal
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._loose = 0  # bytes since the last head, piece of body or end of a message
        self._head_bytes = 0  # of the header fields so far
        self._timed = ""  # what `_reading` waits for
        self._fault = NO_HTTP  # what the parser gives up for, unless a callback below says otherwise
        self._in_head = self._in_body = False
        self._pieces: list[bytes] = []  # of the body, out of one read: adding each to the body would copy all of it

    # Asyncio's side

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            self._on_refusal(429)  # counted as what it is; to say it would take as long as to serve
            transport.abort()
            return
        self._expect("head")

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._reading, self._writing):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._loose += len(data)
        super().data_received(data)
        if self._pieces:
            self._hand_over()
        part = "body" if self._in_body else "head" if self._in_head or self._loose else ""
        # None for a request that arrived whole; anew for a body that is read still: its route bounds it.
        if part != self._timed or (part == "body" and self._is_answering()):
            self._expect(part)
        # A field that does not end is kept by the parser, which calls nobody; one of a trailer just as well.
        if self._loose > MAX_HEAD_BYTES:
            self._refuse(HEAD_TOO_LARGE)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._abort_later()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
        if self.transport.is_closing():
            self._abort_later()

    # Uvicorn's side: a closed connection lives on until the client has taken all that was written

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._abort_later()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._abort_later()

    def _should_upgrade(self) -> bool:
        """What else asks for an upgrade is answered as if it had not."""
        return super()._should_upgrade() and self.scope["method"] == "GET" and not self._is_answering()

    def handle_websocket_upgrade(self) -> None:
        if self._head_bytes + len(self.url) + _GET_BYTES > MAX_HANDSHAKE_BYTES:
            self._refuse(HANDSHAKE)
        else:
            super().handle_websocket_upgrade()

    def _unsupported_upgrade_warning(self) -> None:
        """Every client of HTTP/2 would cause it."""

    # The parser's side

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        self._in_head = True
        if len(self.pipeline) >= MAX_PIPELINED:  # all that one read brought are begun in one go
            self._give_up(PIPELINED)

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES or len(self.headers) > MAX_FIELDS:
            self._give_up(HEAD_TOO_LARGE)

    def on_headers_complete(self) -> None:
        if self._head_bytes + len(self.url) > MAX_HEAD_BYTES:
            self._give_up(HEAD_TOO_LARGE)
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) > 1 or b"" in hosts or (not hosts and self.parser.get_http_version() == "1.1"):
            self._give_up(HOSTS)
        if [name for name, _ in self.headers].count(b"authorization") > 1:
            self._give_up(CALLERS)
        self._loose = 0
        self._in_head, self._in_body = False, True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._loose = 0
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        if self._pieces:
            self._hand_over()
        self._loose = 0
        self._in_body = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Called where the parser gave up, and where a callback above did."""
        self._refuse(self._fault)

    # Behind them

    def _hand_over(self) -> None:
        body, self._pieces = b"".join(self._pieces), []
        super().on_body(body)

    def _give_up(self, fault: Fault) -> NoReturn:
        self._fault = fault
        raise GivenUp

    def _abort_later(self) -> None:
        """Unless the client takes something until then, or the connection ends."""
        if self._writing is None:
            self._writing = self.loop.call_later(self._limits.write_seconds, self.transport.abort)

    def _close(self) -> None:
        self.transport.close()
        self._abort_later()

    def _expect(self, part: str) -> None:
        """Waits for the end of a head, of a body or, with the empty string, of nothing."""
        if self._reading is not None:
            self._reading.cancel()
        seconds = self._limits.body_seconds if part == "body" else self._limits.head_seconds
        self._reading = self.loop.call_later(seconds, self._too_slow) if part else None
        self._timed = part

    def _too_slow(self) -> None:
        if not self._in_body and self._is_answering():  # the head of a next request, begun too early
            self._expect("head")
            return
        if self._in_body and self.flow.read_paused:  # it is we who do not get on
            self._expect("body")
            return
        self._expect("")
        if not (self._in_body or self._in_head or self._loose):  # connected, and never said a word
            self._close()
            return
        part = "body" if self._in_body else "head"
        self._refuse(Fault("request_too_slow", f"the request's {part} took too long"))

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, fault: Fault) -> None:
        """Answers in the place of the routes, unless one of them answers this request, and closes."""
        if self.transport.is_closing():
            return
        answer = problem(fault.code, fault.detail, {"Connection": "close", "X-Content-Type-Options": "nosniff"})
        begun = self.cycle is not None and self.cycle.response_started
        if not (begun if self._in_body else self._is_answering()):
            fields = b"".join(b"%b: %b\r\n" % field for field in answer.raw_headers)
            self.transport.write(STATUS_LINE[answer.status_code] + fields + b"\r\n" + bytes(answer.body))
        self._close()
        self._on_refusal(answer.status_code)
        _log.info("request refused", extra={"code": fault.code, "status": answer.status_code})
