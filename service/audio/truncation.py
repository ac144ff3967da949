"""Files that were cut off, or damaged where a checksum tells: mp4, webm, mp3 and ADTS, by their own structure.

Each check reads only what the container states, and is silent where it states nothing: a webm as it was recorded, an
mp3 without its counts. Wav and ogg are read whole in files of their own.
"""

import re
import zlib
from itertools import islice

from service.audio.containers import Container, Sniffed
from service.audio.frames import Kind, frame_length
from service.audio.hostile import mp4_boxes
from service.errors import BadAudio

MAX_STEPS = 500_000  # elements looked at in one file; what lies behind is not judged
TAG_BYTES = 128  # of an ID3v1 tag, which a writer counted and another took away
_XING = re.compile(rb"Xing|Info")
_EBML_NESTED = (b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75")  # Segment, Cluster
_EBML_CHECKSUM = b"\xbf\x84"  # first in an element, of what follows in it


def check_container(encoded: bytes, sniffed: Sniffed) -> None:
    """Refuse a file that ends before its own structure does; `encoded` begins where it was sniffed.

    Raises:
        BadAudio
    """
    match sniffed.container:
        case Container.MP4:
            missing = _missing_from_mp4(encoded)
        case Container.WEBM:
            missing = _missing_from_webm(encoded)
        case Container.MP3:
            missing = _missing_from_mp3(encoded, sniffed)
        case Container.ADTS:
            missing = 0 if sniffed.dump else max(0, _walk("aac", encoded)[1] - len(encoded))
        case _:
            missing = 0
    if missing > 0:
        title = sniffed.container.title
        raise BadAudio(f"the {title} file is cut off: {missing} bytes of it are missing; send it whole")


def _missing_from_mp4(encoded: bytes) -> int:
    ends = [end for _, _, end in islice(mp4_boxes(encoded), MAX_STEPS)]
    return ends[-1] - len(encoded) if ends else 0


def _missing_from_webm(encoded: bytes) -> int:
    position = 0
    for _ in range(MAX_STEPS):
        if position >= len(encoded):
            return 0
        width = 9 - encoded[position].bit_length()  # of the element's id
        kind = encoded[position : position + width]
        at = position + width
        if width > 4 or at >= len(encoded):
            return 0
        width = 9 - encoded[at].bit_length()
        if width > 8:
            return 0
        size = int.from_bytes(encoded[at : at + width]) & ((1 << 7 * width) - 1)
        position = at + width
        unknown = size == (1 << 7 * width) - 1
        if not unknown and position + size > len(encoded):
            return position + size - len(encoded)
        if unknown and kind not in _EBML_NESTED:
            return 0
        if not unknown:
            _check_element(encoded, position, size)
        if kind not in _EBML_NESTED:
            position += size
    return 0


def _check_element(encoded: bytes, start: int, size: int) -> None:
    """Judge an element's content by its checksum (RFC 8794, section 11.3.1), where it begins with one."""
    if size < 6 or encoded[start : start + 2] != _EBML_CHECKSUM:
        return
    told = int.from_bytes(encoded[start + 2 : start + 6], "little")
    if zlib.crc32(memoryview(encoded)[start + 6 : start + size]) != told:
        raise BadAudio(f"the webm file is damaged: the element at byte {start} does not have the checksum it states")


def _missing_from_mp3(encoded: bytes, sniffed: Sniffed) -> int:
    """By its frames, and by the numbers of frames and of bytes that its first frame may state (Xing, Info).

    The frames count more: tags that were put on or taken off later make the bytes wrong.
    """
    frames, end = _walk("mp3", encoded)
    if end > len(encoded) and not sniffed.dump:
        return end - len(encoded)
    found = _XING.search(encoded, 4 + 9, 4 + 2 + 32 + 4)
    if found is None:
        return 0
    flags, *fields = (int.from_bytes(encoded[at : at + 4]) for at in range(found.end(), found.end() + 12, 4))
    told = fields.pop(0) if flags & 1 else None
    missing = fields[0] - len(encoded) - sniffed.start if flags & 2 else 0
    if told is None:
        return missing if missing > TAG_BYTES else 0
    lost = told - (frames - 1)  # its own frame is not counted, by most writers
    if lost <= 0 or (lost == 1 and missing <= TAG_BYTES):
        return 0
    return missing if flags & 2 else lost


def _walk(kind: Kind, encoded: bytes) -> tuple[int, int]:
    """How many frames follow one another from the beginning, and where the last ends; something else follows it."""
    position = 0
    for count in range(MAX_STEPS):
        length = frame_length(kind, encoded[position : position + 7])
        if not length or position >= len(encoded):
            return count, position
        position += length
    return MAX_STEPS, position
