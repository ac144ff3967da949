"""Files that were cut off: whose own structure says that more should follow. Knows nothing of decoding.

Each check reads only sizes that the container states, and is silent where it states none: a wav from a pipe,
a webm as it was recorded, an ogg without its last page.
"""

import re
from itertools import islice

from service.audio.containers import Container
from service.audio.hostile import mp4_boxes
from service.errors import BadAudio

MAX_STEPS = 500_000  # elements looked at in one file; what lies behind is not judged
WAV_EXCESS = 44  # bytes: writers that count the header as data are common
WAV_STREAMING = 0x7FFFF000  # data sizes from here on, and 0, are what pipes write
_XING = re.compile(rb"Xing|Info")
_MP3_KBITS = {
    3: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # MPEG 1, layer III
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # MPEG 2
    0: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # MPEG 2.5
}
_MP3_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_EBML_NESTED = (b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75")  # Segment, Cluster


def check_container(encoded: bytes, container: Container, tags: int = 0) -> None:
    """Refuse a file that ends before its own structure does; `tags` bytes of ID3 came before `encoded`.

    Raises:
        BadAudio
    """
    match container:
        case Container.WAV:
            missing = _missing_from_wav(encoded)
        case Container.OGG:
            missing = _missing_from_ogg(encoded)
        case Container.MP4:
            missing = _missing_from_mp4(encoded)
        case Container.WEBM:
            missing = _missing_from_webm(encoded)
        case Container.MP3 | Container.ADTS:
            missing = max(_missing_by_xing(encoded, tags), _missing_from_frames(encoded, container))
        case _:
            missing = 0
    if missing > 0:
        raise BadAudio(f"the {container.title} file is cut off: {missing} bytes of it are missing; send it whole")


def check_decoded(encoded: bytes, container: Container, samples: int) -> None:
    """Refuse a flac file that gave fewer `samples` than its header counts.

    Raises:
        BadAudio
    """
    if container is not Container.FLAC or encoded[4] & 0x7F:
        return
    total = int.from_bytes(encoded[18:26]) & (2**36 - 1)  # 0 where the writer did not know
    if samples < total:
        raise BadAudio(f"the flac file is cut off: it has {samples} of {total} samples; send it whole")


def _missing_from_wav(encoded: bytes) -> int:
    position, wide = 12, 0
    for _ in range(MAX_STEPS):
        kind = encoded[position : position + 4]
        if len(encoded) < position + 8:
            return 0
        size = int.from_bytes(encoded[position + 4 : position + 8], "little")
        if kind == b"ds64":
            wide = int.from_bytes(encoded[position + 16 : position + 24], "little")
        missing = position + 8 + size - len(encoded)
        if kind == b"data":
            if size == 0xFFFFFFFF and 0 < wide < 2**63:
                return position + 8 + wide - len(encoded)
            return missing if missing > WAV_EXCESS and size < WAV_STREAMING else 0
        if missing > 1:
            return missing
        position += 8 + size + size % 2
    return 0


def _missing_from_ogg(encoded: bytes) -> int:
    position = 0
    for _ in range(MAX_STEPS):
        head = encoded[position : position + 27]
        if not head or not b"OggS".startswith(head[:4]):
            return 0
        if len(head) < 27:
            return 27 - len(head)
        table = encoded[position + 27 : position + 27 + head[26]]
        position += 27 + head[26] + sum(table)
        if position > len(encoded) or len(table) < head[26]:
            return max(1, position - len(encoded))
    return 0


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
        if kind not in _EBML_NESTED:
            position += size
    return 0


def _missing_by_xing(encoded: bytes, tags: int) -> int:
    """By the number of bytes that the first frame of an mp3 states, if it is such a frame."""
    found = _XING.search(encoded, 4 + 9, 4 + 2 + 32 + 4)
    if found is None:
        return 0
    flags = int.from_bytes(encoded[found.end() : found.end() + 4])
    if not flags & 2:
        return 0
    at = found.end() + (8 if flags & 1 else 4)
    return int.from_bytes(encoded[at : at + 4]) - len(encoded) - tags


def _missing_from_frames(encoded: bytes, container: Container) -> int:
    """By walking the frames of an mp3 or ADTS stream; the walk ends where something else follows."""
    position = 0
    for _ in range(MAX_STEPS):
        header = encoded[position : position + 7]
        length = _adts_length(header) if container is Container.ADTS else _mp3_length(header)
        if not length:
            return 0
        position += length
        if position > len(encoded):
            return position - len(encoded)
    return 0


def _adts_length(header: bytes) -> int:
    if len(header) < 7 or header[0] != 0xFF or header[1] & 0xF6 != 0xF0:
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
    return slots * _MP3_KBITS[version][bitrate - 1] // _MP3_RATES[version][rate] + ((header[2] >> 1) & 1)
