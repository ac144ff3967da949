"""Which container the bytes of a clip are, from their first bytes alone. Knows nothing of what is inside."""

import re
from dataclasses import dataclass
from enum import Enum

from service.errors import BadAudio

_PCM = tuple(
    f"pcm_{layout}"
    for layout in ("u8", "s16le", "s24le", "s32le", "s64le", "f32le", "f64le", "alaw", "mulaw", "s16be", "s24be")
)
_JUNK_BEFORE_SYNC = 64 * 1024  # bytes: padding that writers leave between an ID3 tag and the first frame
_MAX_TAGS = 16  # ID3 tags one behind the other; writers that do not clean up leave two


@dataclass(frozen=True, slots=True)
class _Format:
    demuxer: str  # FFmpeg's name of the one demuxer that may read it
    codecs: frozenset[str]  # FFmpeg's names of the codecs that may be inside
    lossless: bool = False  # its header counts the samples exactly


class Container(Enum):
    """The containers that are decoded, each with its one demuxer and the codecs allowed inside."""

    WAV = _Format("wav", frozenset(_PCM), lossless=True)
    FLAC = _Format("flac", frozenset({"flac"}), lossless=True)
    MP3 = _Format("mp3", frozenset({"mp3", "mp3float"}))
    ADTS = _Format("aac", frozenset({"aac"}))
    OGG = _Format("ogg", frozenset({"vorbis", "opus", "libopus", "flac"}))
    MP4 = _Format("mp4", frozenset({"aac", "mp3", "mp3float", "opus", "libopus", "flac"}))
    WEBM = _Format("matroska", frozenset({"opus", "libopus", "vorbis", "aac", "mp3", "mp3float", "flac"}))

    @property
    def demuxer(self) -> str:
        return self.value.demuxer

    @property
    def codecs(self) -> frozenset[str]:
        return self.value.codecs

    @property
    def lossless(self) -> bool:
        return self.value.lossless

    @property
    def title(self) -> str:
        return "aac (ADTS)" if self is Container.ADTS else self.name.lower()


ACCEPTED = "wav, flac, mp3, ogg (vorbis, opus), m4a/aac or webm (opus)"


def sniff(encoded: bytes) -> tuple[Container, int]:
    """The container, and the position where it starts: behind ID3 tags, which nothing here reads.

    Raises:
        BadAudio: none of the accepted containers starts like this.
    """
    start = _after_id3(encoded)
    head = encoded[start : start + 16]
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return Container.WAV, start
    if head[:4] == b"fLaC":
        return Container.FLAC, start
    if head[:4] == b"OggS":
        return Container.OGG, start
    if head[4:8] == b"ftyp":
        return Container.MP4, start
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return Container.WEBM, start
    container = _frame_sync(head)
    if container is None and start:  # tagged: padding may lie before the first frame
        found = re.compile(rb"\xff[\xe2-\xff]").search(encoded, start, start + _JUNK_BEFORE_SYNC)
        start = found.start() if found else start
        container = _frame_sync(encoded[start : start + 4])
    if container is None:
        shown = encoded[:8].hex(" ")
        raise BadAudio(f"the clip is no audio file that is accepted (it starts with {shown}); send {ACCEPTED}")
    return container, start


def _after_id3(encoded: bytes) -> int:
    """Position behind the ID3v2 tags at the front; their sizes have seven bits in each byte."""
    start = 0
    for _ in range(_MAX_TAGS):
        if encoded[start : start + 3] != b"ID3" or len(encoded) < start + 10:
            break
        flags, size = encoded[start + 5], encoded[start + 6 : start + 10]
        if any(byte & 0x80 for byte in size):
            break
        footer = 10 if flags & 0x10 else 0
        start += 10 + footer + (size[0] << 21 | size[1] << 14 | size[2] << 7 | size[3])
    return start


def _frame_sync(head: bytes) -> Container | None:
    """mp3 or ADTS by a frame header: 11 or 12 set bits, then fields that must not be their reserved values."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    if head[1] & 0xF6 == 0xF0 and (head[2] >> 2) & 15 < 13:
        return Container.ADTS
    version, layer = (head[1] >> 3) & 3, (head[1] >> 1) & 3
    bitrate, rate = head[2] >> 4, (head[2] >> 2) & 3
    if version != 1 and layer == 1 and bitrate not in (0, 15) and rate != 3:
        return Container.MP3
    return None
