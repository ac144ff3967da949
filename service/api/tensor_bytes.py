"""The binary extension of the Open Inference Protocol: tensors as bytes behind the JSON; and compressed bodies."""

import asyncio
import struct
import zlib
from collections.abc import Iterable
from typing import Final

from service.api.bodies import Reservation
from service.errors import InvalidRequest, PayloadTooLarge

JSON_LENGTH: Final = "Inference-Header-Content-Length"  # header: bytes of JSON before the tensors
ENCODINGS: Final = ("gzip", "deflate")
_LENGTH: Final = struct.Struct("<I")  # before each element of BYTES
_STEP: Final = 2**20  # bytes that are inflated in one go
_EITHER: Final = zlib.MAX_WBITS | 32  # gzip or zlib, as the first bytes say


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
            piece = await asyncio.to_thread(inflater.decompress, left, _STEP)
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


def split(body: bytes, header: str | None) -> tuple[bytes, memoryview]:
    """The JSON of a body, and the bytes of its tensors; without the header all of it is JSON.

    Raises:
        InvalidRequest: the header is no length within the body.
    """
    if header is None:
        return body, memoryview(b"")
    if not (header.isascii() and header.isdecimal() and len(header) < 12 and int(header) <= len(body)):
        raise InvalidRequest(f"{JSON_LENGTH} must be the bytes of JSON before the tensors, got {header[:50]!r}")
    length = int(header)
    return body[:length], memoryview(body)[length:]


def elements(content: memoryview, most: int) -> list[bytes]:
    """The elements of a BYTES tensor, each behind its length.

    Raises:
        InvalidRequest: lengths that do not fit the bytes, or more than `most` elements.
    """
    found: list[bytes] = []
    at = 0
    while at < len(content):
        if len(found) == most:
            raise InvalidRequest(f"inputs.0 holds more than the {most} elements of its shape")
        begin = at + _LENGTH.size
        end = begin + _LENGTH.unpack_from(content, at)[0] if begin <= len(content) else len(content) + 1
        if end > len(content):
            raise InvalidRequest("inputs.0 breaks off within an element: each is 4 bytes of length, then its bytes")
        found.append(bytes(content[begin:end]))
        at = end
    return found


def packed(words: Iterable[str]) -> bytes:
    """Strings as a BYTES tensor."""
    encoded = [word.encode() for word in words]
    return b"".join(part for word in encoded for part in (_LENGTH.pack(len(word)), word))
