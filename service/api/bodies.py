"""Request bodies: raw, multipart or JSON, bounded while they arrive. Knows nothing of audio or adapters."""

import asyncio
import io
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import InvalidRequest, Overloaded, PayloadTooLarge

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_HEADER: Final = 1024  # characters of a Content-Type or Content-Disposition
MAX_OPTIONS: Final = 16  # of one
_STEP: Final = 2**16  # bytes of a multipart body cut up in one go


class Budget:
    """Memory for the bodies and decoded audio of all requests in flight. Used from the event loop only."""

    def __init__(self, limit: int) -> None:
        self.limit = limit  # bytes
        self.held = 0

    @contextmanager
    def reservation(self) -> Iterator["Reservation"]:
        """What one request holds; given back when the request ends."""
        reservation = Reservation(self)
        try:
            yield reservation
        finally:
            self.held -= reservation.held


@dataclass(slots=True)
class Reservation:
    """What one request holds of the budget, bytes."""

    budget: Budget
    held: int = 0

    def add(self, size: int) -> None:
        """Takes `size` more bytes.

        Raises:
            PayloadTooLarge: this request alone would take more than half of the whole budget.
            Overloaded: the others hold too much at the moment.
        """
        limit = self.budget.limit
        if self.held + size > limit // 2:
            raise PayloadTooLarge(f"the request's audio takes more than {limit // 2**21} MiB; send fewer clips at once")
        if self.budget.held + size > limit:
            raise Overloaded(f"requests in flight hold {limit // 2**20} MiB already; try again", retry_after=1.0)
        self.held += size
        self.budget.held += size


@dataclass(frozen=True, slots=True)
class Piece:
    """Some bytes of one part of a multipart body; the first piece of each part is empty and `begins` it."""

    name: str
    content: bytes
    begins: bool = False


async def read_body(request: Request, limit: int, reservation: Reservation) -> bytes:
    """The whole body.

    Raises:
        PayloadTooLarge: longer than `limit` bytes, as announced or as it arrives.
    """
    body = io.BytesIO()  # gives its bytes away without a copy
    async for chunk in _stream(request, limit, reservation):
        body.write(chunk)
    return body.getvalue()


async def read_parts(
    request: Request, allowed: Collection[str], max_parts: int, limit: int, reservation: Reservation
) -> list[tuple[str, bytes]]:
    """Names and contents of a multipart body's parts, in their order, whether or not they carry a file name.

    Raises:
        InvalidRequest: not multipart, broken off, too many parts, or a name that is not `allowed`.
        PayloadTooLarge: longer than `limit` bytes.
    """
    parts: list[tuple[str, io.BytesIO]] = []
    async for piece in stream_parts(request, allowed, max_parts, limit, reservation):
        if piece.begins:
            parts.append((piece.name, io.BytesIO()))
        parts[-1][1].write(piece.content)
    return [(name, content.getvalue()) for name, content in parts]


async def stream_parts(
    request: Request, allowed: Collection[str], max_parts: int, limit: int, reservation: Reservation | None = None
) -> AsyncIterator[Piece]:
    """The parts of a multipart body as they arrive. Raises as `read_parts` does."""
    kind, options = _options(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise InvalidRequest("expected multipart/form-data with a boundary in its Content-Type")
    cutter = _Cutter(frozenset(allowed), max_parts)
    try:
        parser = MultipartParser(boundary, cutter.callbacks())
        async for chunk in _stream(request, limit, reservation):
            for at in range(0, len(chunk), _STEP):
                parser.write(chunk[at : at + _STEP])
                for piece in cutter.take():
                    yield piece
                if at:
                    await asyncio.sleep(0)  # others' turn
    except FormParserError as error:
        raise InvalidRequest(f"the multipart body is broken: {error}") from error
    if not cutter.ended:
        raise InvalidRequest("the multipart body broke off before its closing boundary")


def is_multipart(request: Request) -> bool:
    return request.headers.get("content-type", "").lower().startswith("multipart/")


async def _stream(request: Request, limit: int, reservation: Reservation | None) -> AsyncIterator[bytes]:
    too_large = PayloadTooLarge(f"the body is larger than {limit} bytes, the most this call takes")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise too_large
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit:
            raise too_large
        if reservation is not None:
            reservation.add(len(chunk))
        yield chunk


def _options(header: str) -> tuple[bytes, dict[bytes, bytes]]:
    """A header's value and its options, by a parser that takes quadratic time.

    Raises:
        InvalidRequest: longer, or with more options, than any client sends.
    """
    if len(header) > MAX_HEADER or header.count(";") > MAX_OPTIONS:
        raise InvalidRequest(f"a Content-Type or Content-Disposition has up to {MAX_HEADER} characters and few options")
    return parse_options_header(header)


class _Cutter:
    """Cuts a multipart body into pieces, from the parser's callbacks."""

    def __init__(self, allowed: frozenset[str], max_parts: int) -> None:
        self.ended = False
        self._allowed = allowed
        self._max_parts = max_parts
        self._parts = 0
        self._name = ""
        self._pieces: list[Piece] = []
        self._field = bytearray()
        self._value = bytearray()

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._field.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header,
            "on_headers_finished": self._named,
            "on_part_data": lambda data, start, end: self._pieces.append(Piece(self._name, data[start:end])),
            "on_end": self._end,
        }

    def take(self) -> list[Piece]:
        """The pieces since the last call."""
        pieces, self._pieces = self._pieces, []
        return pieces

    def _begin(self) -> None:
        if self._parts >= self._max_parts:
            raise InvalidRequest(f"the multipart body has more than {self._max_parts} parts")
        self._parts += 1
        self._name = ""

    def _header(self) -> None:
        if self._field.lower() == b"content-disposition":
            _, options = _options(self._value.decode("latin-1"))
            self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._field.clear()
        self._value.clear()

    def _named(self) -> None:
        if self._name not in self._allowed:
            wanted = ", ".join(sorted(self._allowed))
            raise InvalidRequest(f"unexpected multipart part {self._name[:100]!r}; this call takes: {wanted}")
        self._pieces.append(Piece(self._name, b"", begins=True))

    def _end(self) -> None:
        self.ended = True
