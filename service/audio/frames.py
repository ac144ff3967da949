"""Frame headers of mp3 (ISO 11172-3) and ADTS (ISO 13818-7), whose files have no other, and of FLAC."""

import re
from typing import Literal

Kind = Literal["mp3", "aac"]
KINDS: tuple[Kind, ...] = ("mp3", "aac")

_KBITS = {
    3: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # MPEG 1, layer III
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # MPEG 2
    0: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # MPEG 2.5
}
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_SAME = {"mp3": (0xFE, 0x0C), "aac": (0xFE, 0xFC)}  # of bytes 1 and 2: what does not change within a stream
_XING = re.compile(rb"Xing|Info")
MAX_FRAMES = 500_000  # of one file; what lies behind is not judged
TAG_BYTES = 128  # of an ID3v1 tag, which a writer counted and another took away
_HEADER_BYTES = 7
_XING_BYTES = 4 + 2 + 32 + 4 + 120 + 24  # from the first frame's beginning to the end of what is read of it
_ENCODERS = (b"LAME", b"Lavf", b"Lavc")  # whose words on padding are taken, as FFmpeg does
_DECODER_DELAY = 528 + 1  # samples
LONGEST = {"mp3": 1_441, "aac": 8_191}  # bytes of a frame


def frame_length(kind: Kind, header: bytes) -> int:
    """Bytes of the frame that begins with these seven; 0 where none does."""
    return _adts_length(header) if kind == "aac" else _mp3_length(header)


def chain(kind: Kind, encoded: bytes, at: int, most: int) -> int:
    """Frames of one stream that follow one another from `at`, up to `most`; the last may lack its end."""
    first = encoded[at : at + 4]
    for count in range(most):
        header = encoded[at : at + 7]
        length = frame_length(kind, header)
        if not length or any((header[i + 1] ^ first[i + 1]) & mask for i, mask in enumerate(_SAME[kind])):
            return count
        at += length
    return most


def stream_kind(encoded: bytes, at: int, frames: int) -> Kind | None:
    """Of which kind there are so many frames from `at`."""
    return next((kind for kind in KINDS if chain(kind, encoded, at, frames) == frames), None)


def tail_kind(encoded: bytes, at: int) -> Kind | None:
    """Of which kind there is a frame at `at` that reaches the end of the file."""
    lengths = {kind: frame_length(kind, encoded[at : at + 7]) for kind in KINDS}
    return next((kind for kind, length in lengths.items() if length and at + length >= len(encoded)), None)


class Frames:
    """The frames of a stream, followed as its bytes come: whether it ends before they do.

    By its frames, and by the numbers of frames and of bytes that an mp3's first one may state (Xing, Info). The frames
    count more: tags that were put on or taken off later make the bytes wrong.

    Args:
        start: where in the file the stream begins.
        dump: whether it is a piece of a stream, which may end within a frame.
        most: frames that are followed; what lies behind is not judged.
    """

    def __init__(self, kind: Kind, start: int, dump: bool, most: int = MAX_FRAMES) -> None:
        self._kind: Kind = kind
        self._start = start
        self._dump = dump
        self._left = most
        self._first = b""  # bytes of the stream, as many as a Xing header may reach
        self._carry = b""  # the beginning of a header
        self._size = self._next = 0  # bytes that came; where the next frame begins
        self._frames = 0

    def feed(self, chunk: bytes) -> None:
        """Takes the stream's next bytes."""
        if len(self._first) < _XING_BYTES:
            self._first += chunk[: _XING_BYTES - len(self._first)]
        self._size += len(chunk)
        if self._left:
            self._follow(self._carry + chunk if self._carry else chunk, least=_HEADER_BYTES)

    def _follow(self, seen: bytes, least: int) -> None:
        """Goes from frame to frame, as long as there are `least` bytes of the next one's header."""
        base = self._size - len(seen)
        while self._left and len(seen) - (at := self._next - base) >= least:
            length = frame_length(self._kind, seen[at : at + _HEADER_BYTES])
            if not length:  # something else follows
                self._left = 0
                break
            self._left -= 1
            self._frames += 1
            self._next += length
        self._carry = seen[max(0, self._next - base) :] if self._left else b""

    def missing(self) -> int:
        """How many bytes the stream, which has ended, lacks; 0 or fewer where it is whole."""
        if self._carry:
            self._follow(self._carry, least=1)
        if self._next > self._size and not self._dump:
            return self._next - self._size
        if self._kind == "aac":
            return 0
        told, size, _ = self._stated()
        missing = 0 if size is None else size - self._size - self._start
        if told is None:
            return missing if missing > TAG_BYTES else 0
        lost = told - (self._frames - 1)  # its own frame is not counted, by most writers
        if lost <= 0 or (lost == 1 and missing <= TAG_BYTES):
            return 0
        return lost if size is None else missing

    def padding(self) -> range:
        """Samples at the end of an mp3, of those that a decoder gives, which its encoder put in to fill a frame.

        FFmpeg leaves them out itself only where it can go back in the file.
        """
        frames, _, lame = self._stated()
        if frames is None or lame[:4] not in _ENCODERS:
            return range(0)
        delays = int.from_bytes(lame[21:24])
        end = frames * (1152 if self._first[1] & 0x08 else 576) - (delays >> 12)
        return range(end - (delays & 0xFFF), end - _DECODER_DELAY)

    def _stated(self) -> tuple[int | None, int | None, bytes]:
        """Frames and bytes that an mp3's first frame states, and what its encoder says of itself."""
        found = _XING.search(self._first, 4 + 9, 4 + 2 + 32 + 4) if self._kind == "mp3" else None
        if found is None:
            return None, None, b""
        at = found.end() + 4
        flags, stated = self._first[at - 1], list[int | None]()
        for flag in (1, 2):
            stated.append(int.from_bytes(self._first[at : at + 4]) if flags & flag else None)
            at += 4 if flags & flag else 0
        at += (100 if flags & 4 else 0) + (4 if flags & 8 else 0)
        return stated[0], stated[1], self._first[at : at + 24]


def is_flac_frame(header: bytes) -> bool:
    """Whether a FLAC frame's header begins here, by its checksum (RFC 9639, section 9.1)."""
    if len(header) < 6 or header[0] != 0xFF or header[1] & 0xFE != 0xF8:
        return False
    number = max(1, 8 - (~header[4] & 0xFF).bit_length())  # bytes of the frame's number, coded as in UTF-8
    length = 4 + number + {6: 1, 7: 2}.get(header[2] >> 4, 0) + {12: 1, 13: 2, 14: 2}.get(header[2] & 15, 0)
    return _crc8(header[: length + 1]) == 0


def _adts_length(header: bytes) -> int:
    if len(header) < 7 or header[0] != 0xFF or header[1] & 0xF6 != 0xF0 or (header[2] >> 2) & 15 > 12:
        return 0
    length = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
    return length if length >= 7 else 0


def _mp3_length(header: bytes) -> int:
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:  # sync, layer III
        return 0
    version, bitrate, rate = (header[1] >> 3) & 3, header[2] >> 4, (header[2] >> 2) & 3
    if version == 1 or bitrate in (0, 15) or rate == 3:
        return 0
    slots = 144_000 if version == 3 else 72_000
    return slots * _KBITS[version][bitrate - 1] // _RATES[version][rate] + ((header[2] >> 1) & 1)


def _crc8(content: bytes) -> int:
    register = 0
    for byte in content:
        register ^= byte
        for _ in range(8):
            register = (register << 1) ^ (0x107 if register & 0x80 else 0)
    return register
