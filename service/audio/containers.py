"""Which container the bytes of a clip are, from their first bytes alone. Knows nothing of what is inside."""

import re
from dataclasses import dataclass
from enum import Enum

from service.audio.frames import LONGEST, Kind, is_flac_frame, stream_kind, tail_kind
from service.errors import BadAudio

_JUNK_BEFORE_SYNC = 64 * 1024  # bytes: padding behind an ID3 tag, or zeros, before the first frame
_MAX_TAGS = 16  # ID3 tags one behind the other; writers that do not clean up leave two
_FRAMES_AT_START = 2  # that must follow one another to be a stream: other bytes begin like one frame
_FRAMES_BEHIND_JUNK = 4
_NOT_ZERO = re.compile(rb"[^\0]")
_SYNC = re.compile(rb"\xff(?=[\xe2-\xff])")


@dataclass(frozen=True, slots=True)
class _Format:
    demuxer: str  # FFmpeg's name of the one demuxer that may read it
    codecs: frozenset[str] = frozenset()  # FFmpeg's names of the codecs that may be inside


class Container(Enum):
    """The containers that are decoded, each with its one demuxer and the codecs allowed inside."""

    WAV = _Format("wav")  # which wav.py reads
    FLAC = _Format("flac", frozenset({"flac"}))
    MP3 = _Format("mp3", frozenset({"mp3", "mp3float"}))
    ADTS = _Format("aac", frozenset({"aac"}))
    OGG = _Format("ogg", frozenset({"vorbis", "opus", "libopus", "flac"}))
    MP4 = _Format("mp4", frozenset({"aac", "mp3", "mp3float", "opus", "libopus", "flac"}))
    WEBM = _Format("matroska", frozenset({"opus", "libopus", "vorbis", "aac", "mp3", "mp3float", "flac"}))

    @property
    def title(self) -> str:
        return "aac (ADTS)" if self is Container.ADTS else self.name.lower()


ACCEPTED = "wav, flac, mp3, ogg (vorbis, opus), m4a/aac or webm (opus)"
_MAGIC = (  # place and bytes
    (Container.FLAC, 0, b"fLaC"),
    (Container.OGG, 0, b"OggS"),
    (Container.MP4, 4, b"ftyp"),
    (Container.WEBM, 0, b"\x1a\x45\xdf\xa3"),
)
_STREAMS: dict[Kind, Container] = {"mp3": Container.MP3, "aac": Container.ADTS}


@dataclass(frozen=True, slots=True)
class Sniffed:
    """What the bytes of a clip are, and where in them it starts.

    Args:
        dump: whether it is a piece of a stream, which begins, and so may end, within a frame.
    """

    container: Container
    start: int
    dump: bool = False


def sniff(encoded: bytes, is_whole: bool = True) -> Sniffed:
    """The container, behind the ID3 tags and the zero bytes that may lie before it, which nothing here reads.

    Args:
        encoded: the file, or its beginning.

    Raises:
        BadAudio: none of the accepted containers starts like this.
    """
    start = after_id3(encoded, 0)
    head = encoded[start : start + 12]
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:] == b"WAVE":
        return Sniffed(Container.WAV, start)
    for container, place, magic in _MAGIC:
        if head[place : place + 4] == magic:
            return Sniffed(container, start)
    kind = stream_kind(encoded, start, _FRAMES_AT_START)
    if kind is None and is_flac_frame(encoded[start : start + 17]):
        raise BadAudio("the clip is flac frames without the file's beginning, 'fLaC' and its header; send it whole")
    kind = kind or (tail_kind(encoded, start) if is_whole else None)
    found = Sniffed(_STREAMS[kind], start) if kind else _behind_junk(encoded, start)
    if found is None:
        shown = encoded[:8].hex(" ")
        raise BadAudio(f"the clip is no audio file that is accepted (it starts with {shown}); send {ACCEPTED}")
    return found


def _behind_junk(encoded: bytes, start: int) -> Sniffed | None:
    """A stream of frames behind zero bytes, behind what is left of a frame, or after a tag behind anything."""
    sound = _NOT_ZERO.search(encoded, start, start + _JUNK_BEFORE_SYNC + 1)
    begin = after_id3(encoded, sound.start()) if sound else start
    reach = start + _JUNK_BEFORE_SYNC if start else begin + max(LONGEST.values())
    for sync in _SYNC.finditer(encoded, begin, reach + 2):
        kind = stream_kind(encoded, sync.start(), _FRAMES_BEHIND_JUNK)
        if kind:
            return Sniffed(_STREAMS[kind], sync.start(), dump=sync.start() > begin)
    return None


def after_id3(encoded: bytes, start: int) -> int:
    """Position behind the ID3v2 tags at `start`; their sizes have seven bits in each byte."""
    for _ in range(_MAX_TAGS):
        if encoded[start : start + 3] != b"ID3" or len(encoded) < start + 10:
            break
        flags, size = encoded[start + 5], encoded[start + 6 : start + 10]
        if any(byte & 0x80 for byte in size):
            break
        footer = 10 if flags & 0x10 else 0
        start += 10 + footer + (size[0] << 21 | size[1] << 14 | size[2] << 7 | size[3])
    return start
