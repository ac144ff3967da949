"""Headers that would make FFmpeg reserve gigabytes for a small file, found before it reads them.

Two such are known: sample tables of mp4, whose entries need no bytes in the file, and code books of Vorbis. Files of
millions of empty structures, which cost seconds, are refused here too.
Knows nothing of decoding.
"""

import re
from collections.abc import Iterator

import numpy as np

from service.audio.containers import Container
from service.errors import BadAudio

MAX_INDEX_ENTRIES = 2_000_000  # of about 24 bytes each; 300 s of AAC have 14,000
MAX_BOXES = 100_000  # at the top of an mp4; two for each fragment
MAX_TABLES = 100_000  # tables in one file; a fragment for each frame of 300 s has 14,000
MAX_BOOK_VALUES = 4_000_000  # floats in all code books of one stream; libvorbis writes about 200,000
SLICE_BYTES = 2**18  # searched at once
_TABLES = np.frombuffer(b"stszstz2sttscttstrunelstiinfiloc", np.uint32)
_BOOK = re.compile(rb"BCV(..)(...)", re.DOTALL)  # each code book's sync, dimensions, entries


def check_container(encoded: bytes, container: Container) -> None:
    """Refuse an mp4 whose tables claim more samples than any clip has.

    Raises:
        BadAudio
    """
    if container is not Container.MP4:
        return
    samples = edits = pairs = 0
    for tables, at in enumerate(_tables(encoded), start=1):
        kind, at = encoded[at : at + 4], at + 4
        if kind in (b"iinf", b"iloc"):
            raise BadAudio("the mp4 file describes pictures; send an m4a file with sound alone")
        if kind == b"elst":
            edits += _number(encoded, at + 4)
        elif kind in (b"stts", b"ctts"):
            pairs += _pairs(encoded, at + 4)
            if pairs > MAX_INDEX_ENTRIES:  # each table by itself may claim the whole file
                raise BadAudio(f"the mp4 file's tables have more than {MAX_INDEX_ENTRIES} entries")
            samples = max(samples, _run_length_total(encoded, at + 4))
        else:
            samples += _number(encoded, at + (4 if kind == b"trun" else 8))
        if tables > MAX_TABLES or samples * max(1, edits) > MAX_INDEX_ENTRIES:
            raise BadAudio(
                f"the mp4 file's tables claim {samples} samples in {max(1, edits)} edits; "
                f"at most {MAX_INDEX_ENTRIES} are accepted"
            )


def _tables(encoded: bytes) -> Iterator[int]:
    """Every place that could be a table, at any depth, outside the media itself.

    Words are compared at each of the four places that they may begin at, which takes the same time whatever the bytes.
    """
    for start, end in _beside_media(encoded):
        for first in range(start, end, SLICE_BYTES):
            for place in range(first, first + 4):
                words = max(0, min(SLICE_BYTES, end - place) // 4)
                if words:
                    read = np.frombuffer(encoded, np.uint32, words, place)
                    found = np.logical_or.reduce([read == kind for kind in _TABLES])
                    yield from (place + 4 * int(word) for word in found.nonzero()[0])


def _beside_media(encoded: bytes) -> Iterator[tuple[int, int]]:
    begin = 0
    for count, (start, kind, end) in enumerate(mp4_boxes(encoded), start=1):
        if count > MAX_BOXES:
            raise BadAudio(f"the mp4 file has more than {MAX_BOXES} boxes at its top")
        if kind == b"mdat":
            yield begin, start
            begin = min(end, len(encoded))
    yield begin, len(encoded)


def mp4_boxes(encoded: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Start, type and end of each box at the top; the last one's end may lie past the bytes that are there."""
    position = 0
    while position + 8 <= len(encoded):
        size, kind = _number(encoded, position), encoded[position + 4 : position + 8]
        if size == 1:
            size = int.from_bytes(encoded[position + 8 : position + 16])
        elif size == 0:
            size = len(encoded) - position
        end = position + max(size, 8)
        yield position, kind, end
        position = end


def _number(encoded: bytes, at: int) -> int:
    return int.from_bytes(encoded[at : at + 4])


def _pairs(encoded: bytes, at: int) -> int:
    """Pairs of a run-length table that are there, of those that it claims."""
    return min(_number(encoded, at), max(0, len(encoded) - at - 4) // 8)


def _run_length_total(encoded: bytes, at: int) -> int:
    """Samples in a table of (count, value) pairs that starts with its number of pairs."""
    pairs = _pairs(encoded, at)
    counts = np.frombuffer(encoded, dtype=">u4", count=2 * pairs, offset=at + 4)[::2] if pairs else np.empty(0)
    return int(counts.sum(dtype=np.float64))


def check_codec(name: str, extradata: bytes) -> None:
    """Refuse Vorbis headers whose code books unfold to more than an encoder's ever do.

    Books are packed bit by bit, so their sync pattern is looked for at each of the eight bit positions.

    Raises:
        BadAudio
    """
    if name != "vorbis":
        return
    bits = int.from_bytes(extradata, "little")
    values = 0
    for shift in range(8):
        for match in _BOOK.finditer((bits >> shift).to_bytes(len(extradata), "little")):
            dimensions, entries = (int.from_bytes(field, "little") for field in match.groups())
            if dimensions <= 16 and entries <= 65_536:  # the decoder itself refuses larger ones
                values += (1 + dimensions) * entries
    if values > MAX_BOOK_VALUES:
        raise BadAudio(f"the vorbis code books hold {values} values; at most {MAX_BOOK_VALUES} are accepted")
