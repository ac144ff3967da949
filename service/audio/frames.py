"""Frame headers of mp3 (ISO 11172-3) and ADTS (ISO 13818-7), whose files have no other, and of FLAC."""

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
