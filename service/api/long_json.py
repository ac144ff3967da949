"""JSON of requests, parsed in bounded steps: long strings and long rows of numbers are set aside before.

A JSON parser works in one go and keeps every other thread waiting meanwhile, and makes sixteen bytes of memory or more
of one. So what is long in a document, audio in base64 and samples, is cut out by looking for its ends, and read piece
by piece; the parser gets what is left, which is short.
"""

import binascii
import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from service.api.problems import describe
from service.errors import InvalidRequest

MAX_PARSED_BYTES: Final = 2**20  # of a document, once what is long has been set aside
MAX_NESTED: Final = 2_000  # objects and arrays in a document
MAX_QUOTES: Final = 20_000
MAX_FAULTS: Final = 3  # named in one message
MIN_RUN: Final = 1_024  # bytes of what is set aside
PARSED_SIZE: Final = 16  # bytes of memory that a byte of JSON may become: "1," is a float of 24 and its place in a list

MAX_SCHEME: Final = 256  # bytes of a data URL before its data
_SCHEME: Final = b"data:"
_PIECE: Final = 2**18  # bytes read in one step: a few milliseconds; a multiple of 4
_MARK: Final = "\0"  # begins the string that stands for what was set aside
_NUMERIC: Final = re.compile(rb"[-+.eE0-9,\s]*+")

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Document:
    """A JSON document without what is long in it.

    Args:
        text: what is left, with a mark for each run.
        runs: where they are in `body`, start and end: a string's inside, or a row's.
    """

    body: bytes
    text: bytes
    runs: list[tuple[int, int]]

    @property
    def parsed_bytes(self) -> int:
        """Memory that reading all of it takes at most, bytes, beside the body: "1," becomes 4, twice as it becomes a
        clip, and base64 three quarters."""
        return PARSED_SIZE * len(self.text) + 4 * sum(end - start for start, end in self.runs)

    def parse(self, model: type[M]) -> M:
        """The document as `model`. Raises InvalidRequest: empty, not JSON, or not of the model's shape."""
        return parse_json(self.text, model)

    def is_run(self, value: object) -> bool:
        """Whether a value of the parsed text stands for a run."""
        return isinstance(value, str) and value.startswith(_MARK)

    def unpack(self, value: str, where: str) -> bytes:
        """Bytes that came in base64, which may have lines or be a data URL; raises InvalidRequest naming `where`."""
        if self.is_run(value):
            source, start, end = self.body, *self._run(value, b'"', where)
        else:
            source = value.encode("utf-8", "replace")
            start, end = 0, len(source)
        start = _after_scheme(source, start, end, where)
        if any(source.find(odd, start, end) >= 0 for odd in (b"\\", b"\n", b" ")):  # slashes as some write them, lines
            source = _plain(source, start, end)
            start, end = 0, len(source)
        unpacked = io.BytesIO()
        try:
            if source.find(b"=", start, end - 2) >= 0:
                raise binascii.Error("Excess data after padding")
            for at in range(start, end, _PIECE):
                unpacked.write(binascii.a2b_base64(source[at : min(at + _PIECE, end)], strict_mode=True))
        except binascii.Error as error:
            raise InvalidRequest(f"{where} must be the audio file's bytes in base64: {error}") from error
        return unpacked.getvalue()

    def numbers(self, value: str, where: str) -> NDArray[np.float32]:
        """The numbers `[N]` of a row. Raises InvalidRequest naming `where`: no numbers, or too large ones."""
        at, end = self._run(value, b"[", where)
        rows = []
        try:
            while at <= end:
                stop = self.body.find(b",", min(at + _PIECE, end), end)
                stop = end if stop < 0 else stop
                piece = self.body[at:stop]
                if stop - at > 2 * _PIECE or not _NUMERIC.fullmatch(piece) or not piece.strip():
                    raise ValueError
                rows.append(single_precision(json.loads(b"[" + piece + b"]")))
                at = stop + 1
            return np.concatenate(rows)
        except (ValueError, OverflowError) as error:
            raise InvalidRequest(f"{where} must be numbers, separated by commas") from error

    def _run(self, value: str, opener: bytes, where: str) -> tuple[int, int]:
        number = value.removeprefix(_MARK)
        if number.isdecimal() and number.isascii() and len(number) < 10 and int(number) < len(self.runs):
            start, end = self.runs[int(number)]
            if self.body[start - 1 : start] == opener:
                return start, end
        raise InvalidRequest(f"{where} must be a {'row of numbers' if opener == b'[' else 'string'}")


def single_precision(numbers: Iterable[float]) -> NDArray[np.float32]:
    """Numbers `[N]` as float32, infinite where they are too large; OverflowError where not even a double holds one."""
    with np.errstate(over="ignore"):
        return np.fromiter(numbers, np.float64).astype(np.float32)


def in_a_list(value: object) -> object:
    """A run in the place of a whole list, as that list's one row; anything else as it is."""
    return [value] if isinstance(value, str) and value.startswith(_MARK) else value


def set_aside(body: bytes, least: int = MIN_RUN) -> Document:
    """Cuts the strings and rows of numbers of `least` bytes or more out of a document.

    Raises:
        InvalidRequest: what would be left is too much to parse in one go.
    """
    _check_counts(body)
    kept: list[bytes] = []
    runs: list[tuple[int, int]] = []
    quote, bracket = body.find(b'"'), body.find(b"[")
    at = done = 0
    while True:
        quote = body.find(b'"', at) if 0 <= quote < at else quote
        bracket = body.find(b"[", at) if 0 <= bracket < at else bracket
        begins = min((place for place in (quote, bracket) if place >= 0), default=-1)
        if begins < 0:
            break
        start = begins + 1
        end = _string_end(body, start) if begins == quote else _row_end(body, start)
        at = end + 1 if begins == quote else start
        if end - start >= least:
            kept += body[done:begins], b'"\\u0000%d"' % len(runs)
            runs.append((start, end))
            at = done = end + 1
    kept.append(body[done:])
    if sum(map(len, kept)) > MAX_PARSED_BYTES:
        raise InvalidRequest(f"the body holds more than {MAX_PARSED_BYTES} bytes beside base64 and rows of numbers")
    return Document(body, b"".join(kept), runs)


def parse_json(body: bytes, model: type[M]) -> M:
    """A short JSON body as `model`.

    Raises:
        InvalidRequest: empty, not JSON, nested too much, or not of the model's shape.
    """
    if not body:
        raise InvalidRequest(f"the body is empty; send JSON with {' and '.join(map(repr, model.model_fields))}")
    _check_counts(body)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        faults = error.errors(include_url=False)[:MAX_FAULTS]
        raise InvalidRequest("; ".join(describe(item, "body") for item in faults)) from error


def _check_counts(body: bytes) -> None:
    nested = quotes = 0
    for at in range(0, len(body), _PIECE):
        piece = np.frombuffer(body, np.uint8, min(_PIECE, len(body) - at), at)
        nested += int(np.count_nonzero((piece == ord("[")) | (piece == ord("{"))))
        quotes += int(np.count_nonzero(piece == ord('"')))
        if nested > MAX_NESTED or quotes > MAX_QUOTES:
            raise InvalidRequest(
                f"the body has more than {MAX_NESTED} objects and arrays, or more than {MAX_QUOTES // 2} strings"
            )


def _string_end(body: bytes, start: int) -> int:
    """Place of the quote that ends a string; of the body's end where none does."""
    at = start
    while (end := body.find(b'"', at)) >= 0:
        if _escapes(body, at, end) % 2 == 0:
            return end
        at = end + 1
    return len(body)


def _escapes(body: bytes, start: int, end: int) -> int:
    """Backslashes right before `end`."""
    at = end
    while at > start:
        piece = body[max(start, at - _PIECE) : at]
        left = len(piece.rstrip(b"\\"))
        at -= len(piece) - left
        if left:
            break
    return end - at


def _row_end(body: bytes, start: int) -> int:
    """Place of the bracket that ends a row of nothing but numbers; `start` where it is no such row."""
    at = start
    while found := _NUMERIC.match(body, at, at + _PIECE):
        if found.end() < min(at + _PIECE, len(body)):
            break
        at = found.end()
        if at == len(body):
            return start
    end = found.end() if found else start
    return end if body[end : end + 1] == b"]" else start


def _after_scheme(body: bytes, start: int, end: int, where: str) -> int:
    """Place of the data of a data URL, as in `data:audio/wav;base64,UklG`; `start` of anything else."""
    if body[start : start + len(_SCHEME)] != _SCHEME:
        return start
    comma = body.find(b",", start, min(end, start + MAX_SCHEME))
    if comma < 0 or not body[start:comma].endswith(b";base64"):
        raise InvalidRequest(f"{where} is a data URL that does not say ;base64 before its data")
    return comma + 1


def _plain(body: bytes, start: int, end: int) -> bytes:
    """Base64 without line ends and escapes, in pieces."""
    pieces = []
    while start < end:
        stop = min(start + _PIECE, end)
        stop -= body[stop - 1] == ord("\\") and stop < end
        piece = body[start:stop].replace(b"\\/", b"/").replace(b"\\n", b"").replace(b"\\r", b"")
        pieces.append(piece.translate(None, b" \t\r\n"))
        start = stop
    return b"".join(pieces)
