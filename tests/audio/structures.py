"""Where the structures of a valid audio file begin: chunks, pages, boxes, elements, blocks, frames."""

from collections.abc import Iterator

from tests.synthesis import ContainerName

_BOXES_OF_BOXES = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"udta", b"edts", b"dinf")
_MASTERS = (0x18538067, 0x1F43B675, 0x1654AE6B, 0xAE, 0xE1, 0x1549A966, 0x114D9B74, 0x1C53BB6B, 0x1254C367)
_MP3_FRAME = b"\xff\xf3"  # of the encoder's MPEG-2 layer III frames
_FLAC_FRAME = b"\xff\xf8"


def boundaries(container: ContainerName, encoded: bytes) -> list[int]:
    """Every position at which a structure begins, the first bytes and the end left out."""
    walk = {
        "wav": _chunks,
        "flac": _blocks,
        "mp3": _frames_of_mp3,
        "aac": _frames_of_adts,
        "ogg": _pages,
        "opus": _pages,
        "m4a": _boxes,
        "webm": _elements,
    }[container]
    return sorted({at for at in walk(encoded) if 0 < at < len(encoded)})


def _chunks(encoded: bytes) -> Iterator[int]:
    at = 12
    while at + 8 <= len(encoded):
        yield at
        yield at + 8
        size = int.from_bytes(encoded[at + 4 : at + 8], "little")
        at += 8 + size + size % 2


def _blocks(encoded: bytes) -> Iterator[int]:
    at, last = 4, False
    while not last:
        yield at
        yield at + 4
        last = bool(encoded[at] & 0x80)
        at += 4 + int.from_bytes(encoded[at + 1 : at + 4])
    while at >= 0:
        yield at
        at = encoded.find(_FLAC_FRAME, at + 1)


def _frames_of_mp3(encoded: bytes) -> Iterator[int]:
    at = encoded.find(_MP3_FRAME)
    while at >= 0:
        yield at
        yield at + 4
        at = encoded.find(_MP3_FRAME, at + 1)


def _frames_of_adts(encoded: bytes) -> Iterator[int]:
    at = 0
    while at + 7 <= len(encoded):
        yield at
        yield at + 7
        at += (encoded[at + 3] & 3) << 11 | encoded[at + 4] << 3 | encoded[at + 5] >> 5


def _pages(encoded: bytes) -> Iterator[int]:
    at = encoded.find(b"OggS")
    while at >= 0:
        yield at
        yield at + 27
        yield at + 27 + encoded[at + 26]
        at = encoded.find(b"OggS", at + 4)


def _boxes(encoded: bytes, at: int = 0, end: int | None = None) -> Iterator[int]:
    end = len(encoded) if end is None else end
    while at + 8 <= end:
        size, kind = int.from_bytes(encoded[at : at + 4]), encoded[at + 4 : at + 8]
        yield at
        yield at + 8
        if kind in _BOXES_OF_BOXES:
            yield from _boxes(encoded, at + 8, at + size)
        at += max(8, size)


def _elements(encoded: bytes, at: int = 0, end: int | None = None) -> Iterator[int]:
    end = len(encoded) if end is None else end
    while at < end:
        yield at
        width = 9 - encoded[at].bit_length()
        kind = int.from_bytes(encoded[at : at + width])
        at += width
        width = 9 - encoded[at].bit_length()
        size = int.from_bytes(encoded[at : at + width]) & ((1 << 7 * width) - 1)
        at += width
        yield at
        inside = end if size == (1 << 7 * width) - 1 else at + size
        if kind in _MASTERS:
            yield from _elements(encoded, at, min(inside, end))
        at = inside
