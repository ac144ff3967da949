"""Request bodies: raw, multipart or compressed, bounded while they arrive."""

import asyncio
import io
import zlib
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from service.errors import InvalidRequest, Overloaded, PayloadTooLarge

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_HEADER: Final = 1024  # characters of a Content-Type or Content-Disposition
MAX_OPTIONS: Final = 16  # of one
ENCODINGS: Final = ("gzip", "deflate")
_STEP: Final = 2**16  # bytes of a multipart body cut up in one go
_INFLATED: Final = 2**20  # bytes that come out in one go
_EITHER: Final = zlib.MAX_WBITS | 32  # gzip or zlib, as the first bytes say


class Budget:
    """Memory for the bodies and decoded audio of all requests in flight. Used from the event loop only."""

    def __init__(self, limit: int) -> None:
        self.limit = limit  # bytes
        self.held = 0


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

    def release(self) -> None:
        """Gives all of it back, at the request's end."""
        self.budget.held -= self.held
        self.held = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """Some bytes of one part of a multipart body; the first piece of each part is empty and `begins` it.

    Args:
        file: name of the file that the part is, where it is one.
    """

    name: str
    content: bytes
    begins: bool = False
    file: str = ""


@dataclass(frozen=True, slots=True)
class ArrivingClip:
    """One encoded clip that is read while it arrives.

    Args:
        file: its name, where it has one.
        chunks: its bytes, none of them empty.
        ended: set once the whole body has been read.
    """

    file: str
    chunks: AsyncIterator[bytes]
    ended: asyncio.Event


async def open_clip(request: Request, limit: int) -> ArrivingClip:
    """The clip of a body: the raw body itself, or its one part `audio`.

    Raises:
        InvalidRequest: another part, or none.
        PayloadTooLarge: it announces more than `limit` bytes; `chunks` raises where more come.
    """
    ended = asyncio.Event()
    if not is_multipart(request):
        arriving = _Arriving(request, limit, None)

        async def pieces() -> AsyncIterator[bytes]:
            while chunk := await arriving.chunk():
                yield chunk
            ended.set()

        return ArrivingClip("", pieces(), ended)
    parts = stream_parts(request, ("audio",), 1, limit)
    try:
        first = await anext(parts)
    except StopAsyncIteration:
        raise InvalidRequest("the multipart body has no part 'audio'; send the recording as one") from None

    async def contents() -> AsyncIterator[bytes]:
        async for piece in parts:
            if piece.content:
                yield piece.content
        ended.set()

    return ArrivingClip(first.file, contents(), ended)


async def read_body(request: Request, limit: int, reservation: Reservation) -> bytes:
    """The whole body.

    Raises:
        PayloadTooLarge: longer than `limit` bytes, as announced or as it arrives.
    """
    arriving = _Arriving(request, limit, reservation)
    body = io.BytesIO()  # gives its bytes away without a copy
    while not arriving.ended:
        body.write(await arriving.chunk())
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
    request: Request,
    allowed: Collection[str] | None,
    max_parts: int,
    limit: int,
    reservation: Reservation | None = None,
) -> AsyncIterator[Piece]:
    """The parts of a multipart body as they arrive; of any name where `allowed` is None. Raises as `read_parts`."""
    kind, options = _options(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise InvalidRequest("expected multipart/form-data with a boundary in its Content-Type")
    cutter, arriving = _Cutter(allowed, max_parts), _Arriving(request, limit, reservation)
    try:
        parser = MultipartParser(boundary, cutter.callbacks())
        while chunk := await arriving.chunk():
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


async def inflate(body: bytes, encoding: str, limit: int, reservation: Reservation) -> bytes:
    """A body as its Content-Encoding says, inflated step by step.

    Raises:
        InvalidRequest: another encoding, or bytes that are not of it.
        PayloadTooLarge: more than `limit` bytes come out.
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in ENCODINGS:
        raise InvalidRequest(f"Content-Encoding {encoding[:50]!r} is not spoken; {' and '.join(ENCODINGS)} are")
    inflater = zlib.decompressobj(_EITHER)
    pieces: list[bytes] = []
    size, left = 0, body
    while not inflater.eof:
        try:
            piece = await asyncio.to_thread(inflater.decompress, left, _INFLATED)
        except zlib.error as error:
            raise InvalidRequest(f"the body is no {encoding}: {error}") from error
        left = inflater.unconsumed_tail
        if not piece and not left and not inflater.eof:
            raise InvalidRequest(f"the body broke off before the end of its {encoding}")
        size += len(piece)
        if size > limit:
            raise PayloadTooLarge(f"the body is more than {limit} bytes once it is inflated, the most this call takes")
        reservation.add(len(piece))
        pieces.append(piece)
    if inflater.unused_data:
        raise InvalidRequest(f"the body goes on behind the end of its {encoding}")
    return b"".join(pieces)


def is_multipart(request: Request) -> bool:
    return request.headers.get("content-type", "").lower().startswith("multipart/")


class _Arriving:
    """A body as it arrives, until it has `ended`.

    Raises:
        PayloadTooLarge: it announces more than `limit` bytes.
    """

    def __init__(self, request: Request, limit: int, reservation: Reservation | None) -> None:
        self._receive = request.receive
        self._limit = limit
        self._reservation = reservation
        self._size = 0
        self.ended = False
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            raise self._too_large()

    async def chunk(self) -> bytes:
        """The next bytes; none at the end.

        Raises:
            PayloadTooLarge: more than `limit` came.
            ClientDisconnect: the client has gone before the end.
        """
        while not self.ended:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            self.ended = not message.get("more_body", False)
            chunk: bytes = message.get("body", b"")
            if chunk:
                self._size += len(chunk)
                if self._size > self._limit:
                    raise self._too_large()
                if self._reservation is not None:
                    self._reservation.add(len(chunk))
                return chunk
        return b""

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"the body is larger than {self._limit} bytes, the most this call takes")


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

    def __init__(self, allowed: Collection[str] | None, max_parts: int) -> None:
        self.ended = False
        self._allowed = allowed
        self._max_parts = max_parts
        self._parts = 0
        self._name = self._file = ""
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
        self._name = self._file = ""

    def _header(self) -> None:
        if self._field.lower() == b"content-disposition":
            _, options = _options(self._value.decode("latin-1"))
            self._name = options.get(b"name", b"").decode("utf-8", "replace")
            self._file = options.get(b"filename", b"").decode("utf-8", "replace")
        self._field.clear()
        self._value.clear()

    def _named(self) -> None:
        if self._allowed is not None and self._name not in self._allowed:
            wanted = ", ".join(sorted(self._allowed))
            raise InvalidRequest(f"unexpected multipart part {self._name[:100]!r}; this call takes: {wanted}")
        self._pieces.append(Piece(self._name, b"", begins=True, file=self._file))

    def _end(self) -> None:
        self.ended = True
