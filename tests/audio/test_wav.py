"""Wav files of every legal layout, made byte by byte."""

import struct

import numpy as np
import pytest

from service.audio.decode import DecodeLimits, decode
from service.errors import AudioTooLong, BadAudio
from tests.audio.forge import chunk
from tests.synthesis import noise

SOUND = noise(0.2, channels=2)
PCM_GUID = bytes.fromhex("000000001000800000aa00389b71")
AMBISONIC_GUID = bytes.fromhex("00002107d3118644c8c1ca000000")


def integers(width: int, valid: int, order: str = "<") -> bytes:
    """The sound in `valid` bits, from the top of `width` bytes."""
    values = np.round(SOUND.astype(np.float64) * 2.0 ** (valid - 1)).astype(np.int64) << (8 * width - valid)
    if width == 1:
        return (values + 128).astype(np.uint8).tobytes()
    raw = values.astype(f"{order}i8").view(np.uint8).reshape(-1, 8)
    return (raw[:, :width] if order == "<" else raw[:, 8 - width :]).tobytes()


def fmt(tag: int, bits: int, align: int, order: str = "<", extension: bytes = b"") -> bytes:
    return struct.pack(f"{order}HHIIHH", tag, 2, 16_000, 16_000 * align, align, bits) + extension


def extension(tag: int, valid: int, guid: bytes = PCM_GUID) -> bytes:
    return struct.pack("<HHIH", 22, valid, 3, tag) + guid


def wav(header: bytes, body: bytes, before: bytes = b"", magic: bytes = b"RIFF", size: int | None = None) -> bytes:
    order = ">" if magic == b"RIFX" else "<"
    parts = before + b"fmt " + struct.pack(f"{order}I", len(header)) + header
    parts += b"data" + struct.pack(f"{order}I", len(body) if size is None else size) + body
    return magic + struct.pack(f"{order}I", (len(parts) + 4) & 0xFFFFFFFF) + b"WAVE" + parts


def heard(encoded: bytes, atol: float) -> None:
    waveform = decode(encoded)
    assert (waveform.source_rate, waveform.channels) == (16_000, 2)
    np.testing.assert_allclose(waveform.samples, SOUND.mean(axis=1), atol=atol)


@pytest.mark.parametrize(
    ("width", "valid", "tag"),
    [
        *((1, 8, 1), (2, 12, 1), (2, 16, 1), (3, 20, 1), (3, 24, 1), (4, 24, 1), (4, 32, 1)),
        *((2, 12, 0xFFFE), (3, 20, 0xFFFE), (4, 20, 0xFFFE), (4, 24, 0xFFFE)),
    ],
)
def test_bits_are_at_the_top_of_their_bytes(width: int, valid: int, tag: int) -> None:
    stated = valid if tag == 1 else 8 * width
    header = fmt(tag, stated, 2 * width, extension=extension(1, valid) if tag == 0xFFFE else b"")
    heard(wav(header, integers(width, valid)), atol=2.0 ** (1 - valid))


@pytest.mark.parametrize(("dtype", "atol"), [("<f2", 5e-4), ("<f4", 1e-7), ("<f8", 1e-7)])
@pytest.mark.parametrize("extensible", [False, True])
def test_floats(dtype: str, atol: float, extensible: bool) -> None:
    bits = 8 * np.dtype(dtype).itemsize
    header = fmt(0xFFFE, bits, bits // 4, extension=extension(3, bits)) if extensible else fmt(3, bits, bits // 4)
    heard(wav(header, SOUND.astype(dtype).tobytes()), atol)


def test_an_ambisonic_sub_format_is_plain_samples() -> None:
    heard(wav(fmt(0xFFFE, 16, 4, extension=extension(1, 16, AMBISONIC_GUID)), integers(2, 16)), 1e-4)


@pytest.mark.parametrize("width", [2, 3, 4])
def test_big_endian(width: int) -> None:
    heard(wav(fmt(1, 8 * width, 2 * width, ">"), integers(width, 8 * width, ">"), magic=b"RIFX"), 1e-4)


@pytest.mark.parametrize("magic", [b"RF64", b"BW64"])
def test_sizes_of_64_bits(magic: bytes) -> None:
    body = integers(2, 16)
    sizes = chunk(b"ds64", struct.pack("<QQQI", len(body) + 72, len(body), 0, 0))
    heard(wav(fmt(1, 16, 4), body, before=sizes, magic=magic, size=0xFFFFFFFF) + chunk(b"LIST", b"INFO"), 1e-4)


def test_other_chunks_are_passed_over() -> None:
    before = chunk(b"JUNK", bytes(29)) + chunk(b"bext", bytes(602)) + chunk(b"fact", bytes(4))
    heard(wav(fmt(1, 16, 4, extension=b"\0\0"), integers(2, 16), before=before) + chunk(b"LIST", b"INFO" * 3), 1e-4)


def test_a_last_sample_that_is_not_whole_is_left_out() -> None:
    heard(wav(fmt(1, 24, 6), integers(3, 24) + b"\x7f\x7f"), 1e-6)


@pytest.mark.parametrize(
    ("encoded", "words"),
    [
        (wav(fmt(2, 4, 512), bytes(4_096)), "ADPCM"),
        (wav(fmt(0x55, 0, 1), bytes(4_096)), "mp3"),
        (wav(fmt(0xFFFE, 16, 4, extension=extension(1, 16, bytes(14))), bytes(4_096)), "0xfffe"),
        (wav(fmt(1, 40, 10), bytes(4_096)), "40 bits"),
        (wav(fmt(1, 24, 12), bytes(4_096)), "24 bits in 12 bytes"),
        (wav(fmt(3, 24, 6), bytes(4_096)), "24 bits"),
        (b"RIFF\0\0\0\0WAVE" + chunk(b"data", bytes(4_096)), "does not say"),
        (b"RIFF\0\0\0\0WAVE" + chunk(b"fmt ", bytes(8)) + chunk(b"data", bytes(4_096)), "8 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_read_is_named(encoded: bytes, words: str) -> None:
    with pytest.raises(BadAudio, match=words):
        decode(encoded)


def test_limits_are_of_the_samples() -> None:
    body = bytes(2 * 2 * 16_000 * 3)
    with pytest.raises(AudioTooLong, match="2 s"):
        decode(wav(fmt(1, 16, 4), body), DecodeLimits(max_seconds=2.0))
    with pytest.raises(AudioTooLong, match="bytes"):
        decode(wav(fmt(1, 16, 4), body), DecodeLimits(max_decoded_bytes=100_000))
