"""What of a file is heard: the beginning and end of Opus, and which stream of several."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition

from service.audio import decode as decoding
from service.audio.decode import decode
from service.audio.source import Patience, Source, refuse_reference
from service.errors import BadAudio, NotReady
from tests.synthesis import encode, loudest_hz, tone

DELAY = b"\x56\xaa"  # CodecDelay, nanoseconds


def opus_in(muxer: str, rate: int, pictures: bool, seconds: float = 3.0) -> bytes:
    """A sweep in Opus, encoded from `rate`, with pictures beside it if asked."""
    time = np.arange(round(seconds * rate)) / rate
    sound = (0.4 * np.sin(2 * np.pi * (200 + 300 * time) * time)).astype(np.float32)
    target = io.BytesIO()
    with av.open(target, "w", format=muxer) as output:
        if pictures:
            film = output.add_stream("vp8" if muxer == "webm" else "mpeg4", rate=10)
            film.width, film.height, film.pix_fmt = 64, 64, "yuv420p"
        stream = output.add_stream("libopus", rate=rate, layout="mono")
        if pictures:
            for index in range(30):
                picture = av.VideoFrame(64, 64, "yuv420p")
                picture.pts, picture.time_base = index, Fraction(1, 10)
                output.mux(film.encode(picture))
            output.mux(film.encode(None))
        frame = av.AudioFrame.from_ndarray(sound[None], "flt", "mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            output.mux(packet)
    return target.getvalue()


def with_delay(webm: bytes, nanoseconds: int) -> bytes:
    """As a muxer writes it that counts the delay at another rate."""
    at = webm.index(DELAY)
    width = webm[at + 2] & 0x0F
    return webm[: at + 3] + nanoseconds.to_bytes(width) + webm[at + 3 + width :]


@pytest.mark.parametrize("muxer", ["webm", "mp4"])
@pytest.mark.parametrize("pictures", [False, True])
@pytest.mark.parametrize("rate", [8_000, 12_000, 16_000, 24_000, 48_000])
def test_opus_begins_and_ends_as_in_ogg(muxer: str, pictures: bool, rate: int) -> None:
    encoded = opus_in(muxer, rate, pictures)
    reference = decode(opus_in("ogg", rate, pictures=False)).samples
    assert len(reference) == 48_000
    samples = decode(encoded).samples
    assert len(samples) == 48_000
    np.testing.assert_allclose(samples, reference, atol=1e-5)


@pytest.mark.parametrize("nanoseconds", [0, 2_166_667, 6_500_000, 13_000_000, 16_000_000])
def test_the_delay_that_a_webm_states_is_not_believed(nanoseconds: int) -> None:
    encoded = opus_in("webm", 16_000, pictures=False)
    np.testing.assert_array_equal(decode(with_delay(encoded, nanoseconds)).samples, decode(encoded).samples)


def several(codecs: list[str], default: int | None, muxer: str = "matroska") -> bytes:
    """Tones of 300, 600, 900 Hz, one in each stream."""
    target = io.BytesIO()
    options = {"default_mode": "passthrough"} if muxer == "matroska" else {}
    with av.open(target, "w", format=muxer, options=options) as output:
        streams = [output.add_stream(codec, rate=48_000, layout="mono", options={"strict": "-2"}) for codec in codecs]
        for index, stream in enumerate(streams):
            stream.disposition = Disposition.default if index == default else Disposition(0)
        for index, stream in enumerate(streams):
            frame = av.AudioFrame.from_ndarray(tone(1.0, 300.0 * (index + 1), 48_000).T, "flt", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 48_000, 0, Fraction(1, 48_000)
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                output.mux(packet)
    return target.getvalue()


@pytest.mark.parametrize(
    ("codecs", "default", "hertz"),
    [
        (["ac3", "aac"], 0, 600),
        (["ac3", "aac", "aac"], 2, 900),
        (["aac", "aac"], 1, 600),
        (["flac", "libopus"], 0, 300),
        (["ac3", "alac", "libopus"], 1, 900),
    ],
)
def test_the_default_stream_of_an_accepted_codec_is_heard(codecs: list[str], default: int, hertz: int) -> None:
    assert loudest_hz(decode(several(codecs, default)).samples) == pytest.approx(hertz, abs=2)


def test_in_an_mp4_too() -> None:
    assert loudest_hz(decode(several(["ac3", "aac"], 0, "mp4")).samples) == pytest.approx(600, abs=2)


def test_where_no_codec_is_accepted_all_are_named() -> None:
    with pytest.raises(BadAudio, match="ac3, alac"):
        decode(several(["ac3", "alac"], 1))


def test_our_own_faults_are_not_the_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the service is raised as it is, and lack of memory asks for another try."""
    encoded = encode(tone(0.5), 16_000, "flac")
    for fault, expected in ((ValueError("ours"), ValueError), (KeyError("ours"), KeyError), (MemoryError(), NotReady)):

        def broken(*_: object, error: Exception = fault) -> None:
            raise error

        monkeypatch.setattr(decoding, "decode_stream", broken)
        with pytest.raises(expected):
            decode(encoded)


def test_memory_that_a_file_asks_for_is_its_own_fault_while_there_is_some(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*_: object) -> None:
        raise av.MemoryError(12, "Cannot allocate memory")

    monkeypatch.setattr(decoding, "decode_stream", greedy)
    encoded = encode(tone(0.5), 16_000, "flac")
    with pytest.raises(BadAudio, match="more memory"):
        decode(encoded)
    monkeypatch.setattr(decoding, "NEEDED_BYTES", 2**62)
    with pytest.raises(NotReady, match="no memory"):
        decode(encoded)


def test_a_source_is_not_read_for_ever() -> None:
    source = Source(io.BytesIO(b"abc" * 1000), Patience(3000))

    def reread() -> None:
        while True:
            source.seek(0)
            source.read(3000)

    with pytest.raises(BadAudio, match="again and again"):
        reread()


def test_other_files_are_never_opened() -> None:
    with pytest.raises(BadAudio, match="other files"):
        refuse_reference("file:///etc/passwd", 1, {})
