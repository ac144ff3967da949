"""Wav files of plain samples: RIFF, RIFX, RF64 and BW64, every legal layout of PCM, floats and G.711.

Read here and not by FFmpeg: that takes longer to open a short clip than to decode it, and it takes 24 bits in 32 for
floats. One block of samples is held at a time.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.audio.arriving import Arriving
from service.audio.containers import ACCEPTED
from service.audio.mixdown import Mixdown, mean_of_channels
from service.errors import BadAudio

MAX_CHUNKS = 10_000  # before the samples
EXCESS_BYTES = 44  # that a file may lack: writers that count the header as data are common
STREAMING = 0x7FFFF000  # data sizes from here on, and 0, are what pipes write
BLOCK_BYTES = 2**17  # converted at once
_FMT_BYTES = 64  # of a `fmt ` chunk that are read
_EXTENSIBLE = 0xFFFE
_SUB_FORMATS = (  # behind the two bytes of a format: Microsoft's own, and ambisonic's
    bytes.fromhex("0000000010008000 00aa00389b71"),
    bytes.fromhex("00002107d3118644 c8c1ca000000"),
)
PCM, _FLOAT, _ALAW, _MULAW = 1, 3, 6, 7
_DTYPES = {PCM: {1: "u1", 2: "i2", 3: "u1", 4: "i4", 8: "i8"}, _FLOAT: {2: "f2", 4: "f4", 8: "f8"}}
_NAMES = {2: "ADPCM", 0x11: "IMA ADPCM", 0x31: "GSM 6.10", 0x50: "MPEG audio", 0x55: "mp3", 0xFF: "AAC", 0x161: "WMA"}


@dataclass(frozen=True, slots=True)
class Uncompressed:
    """What a file's header says of its samples."""

    form: int  # PCM, _FLOAT, _ALAW or _MULAW
    width: int  # bytes of one sample of one channel, which is left-justified in them
    order: Literal["<", ">"]
    rate: int
    channels: int


def decode_wav(arriving: Arriving, mixdown: Mixdown, length: int | None = None) -> None:
    """The clip in a wav file, as a part of `mixdown`.

    Args:
        length: bytes of the file, where they are known before they have come.

    Raises:
        BadAudio: cut off, of another codec, or out of bounds.
        AudioTooLong: more than the limits allow.
    """
    found, size = _read_header(arriving)
    if length is not None:
        there = length - arriving.position
        if size is not None:
            _check_whole(size - there, EXCESS_BYTES)
        size = there if size is None else min(size, there)
    mixdown.begin(found.rate, found.channels)
    frame = found.width * found.channels
    if size is not None:
        mixdown.check_room(size // frame)
    left, rest, step = size, b"", max(1, BLOCK_BYTES // frame) * frame
    while block := arriving.read(step if left is None else min(step, left)):
        left = None if left is None else left - len(block)
        block = rest + block if rest else block
        whole = len(block) // frame * frame
        samples = _samples(memoryview(block)[:whole], found).reshape(-1, found.channels)
        mixdown.add(mean_of_channels([samples[:, channel] for channel in range(found.channels)]))
        rest = block[whole:]
    mixdown.end()
    if length is None:
        _check_whole(left or 0, EXCESS_BYTES)


def _samples(block: memoryview, wav: Uncompressed) -> NDArray[Any]:
    if wav.form in (_ALAW, _MULAW):
        table = _ALAW_TABLE if wav.form == _ALAW else _MULAW_TABLE
        return table[np.frombuffer(block, np.uint8)]
    if wav.form == PCM and wav.width == 3:  # into the upper bytes of four
        wide = np.zeros((len(block) // 3, 4), np.uint8)
        wide[:, slice(1, 4) if wav.order == "<" else slice(0, 3)] = np.frombuffer(block, np.uint8).reshape(-1, 3)
        return wide.view(f"{wav.order}i4")[:, 0]
    return np.frombuffer(block, wav.order + _DTYPES[wav.form][wav.width])


def _read_header(arriving: Arriving) -> tuple[Uncompressed, int | None]:
    """What the header says, up to the samples, and their bytes where the writer knew them."""
    order: Literal["big", "little"] = "big" if arriving.peek(4) == b"RIFX" else "little"

    def number(content: bytes, at: int, width: int) -> int:
        return int.from_bytes(content[at : at + width], order)

    fmt = b""
    wide = 0
    arriving.skip(12)
    for _ in range(MAX_CHUNKS):
        head = arriving.peek(8)
        kind, size = head[:4], number(head, 4, 4)
        if arriving.skip(8) < 8:
            raise BadAudio("the wav file is cut off: it ends before its samples; send it whole")
        if kind == b"data":
            if size == 0xFFFFFFFF and 0 < wide < 2**63:
                size = wide
            is_known = 0 < size < STREAMING or size == wide > 0
            return _check_format(fmt, order), size if is_known else None
        content = arriving.peek(min(size, _FMT_BYTES)) if kind in (b"fmt ", b"ds64") else b""
        _check_whole(size + size % 2 - arriving.skip(size + size % 2), excess=1 + size % 2)
        if kind == b"fmt " and not fmt:
            if size < 16:
                raise BadAudio(f"the wav file's format takes {size} bytes; at least 16 are needed")
            fmt = content
        if kind == b"ds64":
            wide = number(content, 8, 8)
    raise BadAudio(f"the wav file has more than {MAX_CHUNKS} chunks before its samples")


def _check_whole(missing: int, excess: int) -> None:
    if missing > excess:
        raise BadAudio(f"the wav file is cut off: {missing} bytes of it are missing; send it whole")


def _check_format(fmt: bytes, order: Literal["big", "little"]) -> Uncompressed:
    """The samples by the content of the `fmt ` chunk; its sizes are of containers, which are filled from the top."""
    if not fmt:
        raise BadAudio("the wav file does not say the format of its samples")
    fields = [int.from_bytes(fmt[2 * field : 2 * field + 2], order) for field in (0, 1, 6, 7)]
    form, channels, align, bits = fields
    if form == _EXTENSIBLE and fmt[26:40] in _SUB_FORMATS:
        form = int.from_bytes(fmt[24:26], order)
    if form not in (PCM, _FLOAT, _ALAW, _MULAW):
        raise BadAudio(f"the wav file holds audio of the codec {_NAMES.get(form, hex(form))}; send {ACCEPTED}")
    if not channels:
        raise BadAudio("the clip has 0 channels; 1 or more are accepted")
    width = 1 if form in (_ALAW, _MULAW) else -(-bits // 8)
    if form == PCM and align % channels == 0 and align // channels > width > 1:
        width = align // channels  # 24 bits in 32
    if form in _DTYPES and width not in _DTYPES[form]:
        raise BadAudio(f"the wav file holds samples of {bits} bits in {align} bytes; send 8, 16, 24 or 32 bits")
    return Uncompressed(form, width, ">" if order == "big" else "<", int.from_bytes(fmt[4:8], order), channels)


def _alaw(code: NDArray[np.int32]) -> NDArray[np.float32]:
    """ITU-T G.711, table 1: 13 bits, scaled to [-1, 1)."""
    code = code ^ 0x55
    exponent, mantissa = code >> 4 & 7, code & 15
    magnitude = np.where(exponent == 0, 2 * mantissa + 1, (2 * mantissa + 33) << np.maximum(exponent - 1, 0))
    return (np.where(code & 0x80, magnitude, -magnitude) / 4096).astype(np.float32)


def _mulaw(code: NDArray[np.int32]) -> NDArray[np.float32]:
    """ITU-T G.711, table 2: 14 bits, scaled to [-1, 1)."""
    code = code ^ 0xFF
    magnitude = ((2 * (code & 15) + 33) << (code >> 4 & 7)) - 33
    return (np.where(code & 0x80, -magnitude, magnitude) / 8192).astype(np.float32)


_ALAW_TABLE = _alaw(np.arange(256, dtype=np.int32))
_MULAW_TABLE = _mulaw(np.arange(256, dtype=np.int32))
