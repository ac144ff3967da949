"""The boxes of an mp4 file (ISO 14496-12): what they claim, and whether the file ends before they do.

Entries of its sample tables need no bytes in the file: FFmpeg would reserve gigabytes for a small one, and files of
millions of empty structures cost seconds. Both are refused before it reads them.
"""

import mmap
from collections.abc import Iterator
from itertools import islice

import numpy as np

from service.errors import BadAudio

Content = bytes | mmap.mmap

MAX_INDEX_ENTRIES = 2_000_000  # of about 24 bytes each; 300 s of AAC have 14,000
MAX_BOXES = 100_000  # at the top of an mp4; two for each fragment
MAX_TABLES = 100_000  # tables in one file; a fragment for each frame of 300 s has 14,000
SLICE_BYTES = 2**18  # searched at once
_TABLES = np.frombuffer(b"stszstz2sttscttstrunelstiinfiloc", np.uint32)


def missing_bytes(encoded: Content) -> int:
    """How many the file lacks; negative where something follows it."""
    ends = [end for _, _, end in islice(_boxes(encoded), MAX_BOXES)]
    return ends[-1] - len(encoded) if ends else 0


def check_tables(encoded: Content) -> None:
    """Refuse a file whose tables claim more samples than any clip has.

    Raises:
        BadAudio
    """
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


def _tables(encoded: Content) -> Iterator[int]:
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


def _beside_media(encoded: Content) -> Iterator[tuple[int, int]]:
    begin = 0
    for count, (start, kind, end) in enumerate(_boxes(encoded), start=1):
        if count > MAX_BOXES:
            raise BadAudio(f"the mp4 file has more than {MAX_BOXES} boxes at its top")
        if kind == b"mdat":
            yield begin, start
            begin = min(end, len(encoded))
    yield begin, len(encoded)


def _boxes(encoded: Content) -> Iterator[tuple[int, bytes, int]]:
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


def _number(encoded: Content, at: int) -> int:
    return int.from_bytes(encoded[at : at + 4])


def _pairs(encoded: Content, at: int) -> int:
    """Pairs of a run-length table that are there, of those that it claims."""
    return min(_number(encoded, at), max(0, len(encoded) - at - 4) // 8)


def _run_length_total(encoded: Content, at: int) -> int:
    """Samples in a table of (count, value) pairs that starts with its number of pairs."""
    pairs = _pairs(encoded, at)
    counts = np.frombuffer(encoded, dtype=">u4", count=2 * pairs, offset=at + 4)[::2] if pairs else np.empty(0)
    return int(counts.sum(dtype=np.float64))
