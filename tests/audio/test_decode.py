"""Decoding: what comes out of every container, and what hostile bytes get."""

import contextlib
import struct
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.audio.decode import DecodeLimits, decode
from service.audio.waveform import SAMPLING_RATE
from service.errors import AudioTooLong, BadAudio, InvalidRequest, ServiceError
from tests.synthesis import CONTAINERS, LOSSLESS, ContainerName, encode, loudest_hz, noise, rms, tone

RATES = (8_000, 16_000, 44_100, 48_000)
OPUS = ("opus", "webm")  # which have no 44.1 kHz
CHANNELS = dict.fromkeys(CONTAINERS, (1, 2, 8)) | {"mp3": (1, 2), "ogg": (2,)}  # what the encoders can do
PCM = ("pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le", "pcm_alaw", "pcm_mulaw")
HEADS = (b"RIFF\0\0\0\0WAVE", b"fLaC", b"OggS", b"\0\0\0\x14ftyp", b"\x1a\x45\xdf\xa3", b"\xff\xfb\x90\x64")
SECONDS_ALLOWED = 2.0  # of the processor, for a small hostile file


def wav(
    body: bytes = b"\0" * 32_000,
    *,
    tag: int = 1,
    channels: int = 1,
    rate: int = 16_000,
    bits: int = 16,
    size: int | None = None,
) -> bytes:
    """A wav file whose header says whatever it is told to."""
    align = channels * bits // 8 & 0xFFFF
    fmt = struct.pack("<IHHIIHH", 16, tag, channels, rate, rate * align & 0xFFFFFFFF, align, bits)
    data = struct.pack("<I", len(body) if size is None else size) + body
    return b"RIFF" + struct.pack("<I", 36 + len(body)) + b"WAVEfmt " + fmt + b"data" + data


def refused(encoded: bytes, limits: DecodeLimits | None = None) -> ServiceError:
    """The typed error that `encoded` gets, which must come fast."""
    started = time.process_time()
    with pytest.raises(ServiceError) as caught:
        decode(encoded, limits or DecodeLimits())
    assert time.process_time() - started < SECONDS_ALLOWED
    assert "Errno" not in caught.value.detail
    return caught.value


@pytest.mark.parametrize(
    ("container", "channels", "rate"),
    [(c, n, r) for c in CONTAINERS for n in CHANNELS[c] for r in RATES if c not in OPUS or r != 44_100],
)
def test_every_container(container: ContainerName, channels: int, rate: int) -> None:
    source = tone(1.0, 440.0, rate, channels)
    waveform = decode(encode(source, rate, container))
    assert waveform.samples.dtype == np.float32
    assert waveform.samples.ndim == 1
    assert waveform.channels == channels
    assert waveform.source_rate == (48_000 if container in OPUS else rate)
    assert waveform.seconds == pytest.approx(1.0, abs=0.0001 if container in LOSSLESS else 0.26)
    assert loudest_hz(waveform.samples[:SAMPLING_RATE]) == pytest.approx(440.0, abs=2.0)
    # lossy surround has a low-frequency channel of its own, which loses the tone
    tolerance = 0.002 if container in LOSSLESS else 0.08 if channels < 8 else 0.2
    assert rms(waveform.samples[2_000:14_000]) == pytest.approx(0.5 / np.sqrt(2), rel=tolerance)


@pytest.mark.parametrize("codec", PCM)
def test_every_sample_format_of_wav(codec: str) -> None:
    source = tone(0.5, 300.0)
    samples = decode(encode(source, codec=codec)).samples
    tolerance = 0.03 if codec in ("pcm_u8", "pcm_alaw", "pcm_mulaw") else 2e-4
    np.testing.assert_allclose(samples, source[:, 0], atol=tolerance)


@pytest.mark.parametrize("container", LOSSLESS)
@pytest.mark.parametrize("channels", [2, 3, 6, 8])
def test_downmix_is_the_mean(container: ContainerName, channels: int) -> None:
    source = noise(0.3, 16_000, channels)
    samples = decode(encode(source, 16_000, container)).samples
    np.testing.assert_allclose(samples, source.mean(axis=1), atol=5e-5)


def test_opposite_channels_cancel() -> None:
    source = tone(0.5, rate=44_100, channels=2) * np.array([1, -1], np.float32)
    assert rms(decode(encode(source, 44_100, "m4a")).samples) < 1e-3


def test_resampling_keeps_what_fits_and_drops_what_does_not() -> None:
    kept = decode(encode(tone(1.0, 6_500.0, 48_000), 48_000)).samples
    dropped = decode(encode(tone(1.0, 9_500.0, 48_000), 48_000)).samples
    assert rms(kept[1_000:-1_000]) == pytest.approx(0.5 / np.sqrt(2), rel=0.001)
    assert rms(dropped[1_000:-1_000]) < 1e-4


@pytest.mark.parametrize("rate", [4_000, 11_025, 22_050, 96_000, 191_999, 192_000])
def test_any_rate(rate: int) -> None:
    waveform = decode(encode(tone(0.5, 440.0, rate), rate))
    assert len(waveform.samples) == pytest.approx(8_000, abs=1)
    assert waveform.source_rate == rate


@pytest.mark.parametrize("tag_bytes", [0, 300, 200_000])
def test_tags_before_mp3_are_skipped(tag_bytes: int) -> None:
    size = bytes((tag_bytes >> shift) & 0x7F for shift in (21, 14, 7, 0))
    tagged = b"ID3\x04\0\0" + size + b"\xff" * tag_bytes + b"\0" * 100 + encode(tone(1.0), 16_000, "mp3")
    assert decode(tagged).seconds == pytest.approx(1.0, abs=0.1)


def test_trailing_tag_after_mp3() -> None:
    tagged = encode(tone(1.0), 16_000, "mp3") + b"TAG" + b"title".ljust(125, b"\0")
    assert decode(tagged).seconds == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_wav_from_a_pipe(size: int) -> None:
    assert decode(wav(size=size)).seconds == 1.0


def test_one_decoder_in_many_threads() -> None:
    files = [encode(tone(1.0, 200.0 * (1 + i), 48_000, 2), 48_000, name) for i, name in enumerate(CONTAINERS)]
    alone = [decode(file).samples for file in files]
    wrong: list[int] = []

    def work() -> None:
        for index, file in enumerate(files):
            if not np.array_equal(decode(file).samples, alone[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_empty_is_an_invalid_request() -> None:
    with pytest.raises(InvalidRequest):
        decode(b"")


@pytest.mark.parametrize(
    "encoded",
    [
        b"R",
        b"hello, this is no audio" * 100,
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n",
        b"PK\x03\x04" + b"\0" * 1000,
        b"\x89PNG\r\n\x1a\n" + b"\0" * 1000,
        b"ID3\x04\0\0\x7f\x7f\x7f\x7f",
        b"ID3\x04\0\0\0\0\0\0" * 1000,
        b"RIFF\xff\xff\xff\xffWAVE",
        b"\0" * 1000,
        *(head + b"\0" * 500 for head in HEADS),
    ],
)
def test_other_bytes_are_bad_audio(encoded: bytes) -> None:
    assert isinstance(refused(encoded), BadAudio)


@pytest.mark.parametrize(
    "encoded",
    [
        wav(rate=0),
        wav(rate=1),
        wav(rate=3_999),
        wav(rate=192_001),
        wav(rate=4_000_000_000),
        wav(channels=0),
        wav(channels=9),
        wav(channels=192),
        wav(channels=65_535),
        wav(bits=0),
        wav(tag=2, bits=4),
        wav(size=0x5FFFFFFF),
        wav(b""),
        wav(b"\0" * 798),
    ],
    ids=lambda encoded: encoded[20:48].hex(),
)
def test_lying_headers_are_bad_audio(encoded: bytes) -> None:
    assert isinstance(refused(encoded), BadAudio)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_samples_must_be_finite(value: float, rate: int) -> None:
    samples = tone(0.5, rate=rate)
    samples[1_000] = value
    error = refused(wav(samples.astype("<f4").tobytes(), tag=3, bits=32, rate=rate))
    assert isinstance(error, BadAudio)
    assert "finite" in error.detail


def test_doubles_beyond_float32() -> None:
    assert isinstance(refused(wav(np.full(1_000, 1e300).tobytes(), tag=3, bits=64)), BadAudio)


@pytest.mark.parametrize("container", CONTAINERS)
def test_cut_off_files(container: ContainerName) -> None:
    """At any place: a typed error, or for formats that state no length at most the audio that is there."""
    encoded = encode(noise(1.0, 16_000, 2), 16_000, container)
    for eighth in range(1, 8):
        assert isinstance(refused(encoded[: len(encoded) * eighth // 8]), BadAudio)
    for length in range(1, 400, 13):
        assert isinstance(refused(encoded[:length]), BadAudio)


@pytest.mark.parametrize("container", CONTAINERS)
def test_longer_than_allowed(container: ContainerName) -> None:
    encoded = encode(tone(3.0, channels=2), 16_000, container)
    assert isinstance(refused(encoded, DecodeLimits(max_seconds=2.0)), AudioTooLong)
    assert decode(encoded, DecodeLimits(max_seconds=3.2)).seconds == pytest.approx(3.0, abs=0.2)


@pytest.mark.parametrize("container", ["wav", "flac", "m4a"])
def test_ten_minutes(container: ContainerName) -> None:
    assert isinstance(refused(encode(np.zeros((16_000 * 600, 1), np.float32), 16_000, container)), AudioTooLong)


def test_small_files_that_decode_to_much() -> None:
    encoded = encode(np.zeros((192_000 * 4, 8), np.float32), 192_000, "flac")
    assert len(encoded) < 10_000
    assert isinstance(refused(encoded, DecodeLimits(max_decoded_bytes=2**24)), AudioTooLong)


def test_change_of_rate_inside_a_file() -> None:
    joined = encode(tone(1.0, rate=16_000), 16_000, "aac") + encode(tone(1.0, rate=44_100), 44_100, "aac")
    assert isinstance(refused(joined), BadAudio)


def test_codec_that_is_not_accepted() -> None:
    error = refused(encode(tone(1.0), 16_000, "m4a", codec="alac"))
    assert "alac" in error.detail


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(CONTAINERS), st.data())
def test_damaged_files_never_crash(container: ContainerName, draw: st.DataObject) -> None:
    damaged = bytearray(_small(container))
    for _ in range(draw.draw(st.integers(1, 8))):
        position = draw.draw(st.integers(0, len(damaged) - 1) | st.integers(0, min(600, len(damaged) - 1)))
        damaged[position] = draw.draw(st.integers(0, 255))
    try:
        samples = decode(bytes(damaged), DecodeLimits(max_seconds=30)).samples
    except ServiceError:
        return
    assert np.isfinite(samples).all()
    assert len(samples) <= 31 * SAMPLING_RATE


@settings(max_examples=150, deadline=None)
@given(st.sampled_from((b"", *HEADS)), st.binary(max_size=3_000))
def test_random_bytes_never_crash(head: bytes, tail: bytes) -> None:
    with contextlib.suppress(ServiceError):
        decode(head + tail)


_SMALL: dict[ContainerName, bytes] = {}


def _small(container: ContainerName) -> bytes:
    if container not in _SMALL:
        _SMALL[container] = encode(noise(0.3, 16_000, 2), 16_000, container)
    return _SMALL[container]
