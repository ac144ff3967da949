"""FLAC: damage is told by its checksums, in every container that holds it."""

import io

import av
import numpy as np
import pytest

from service.audio.decode import decode
from service.errors import BadAudio, ServiceError
from tests.audio.structures import boundaries
from tests.synthesis import encode, noise

SOUND = noise(1.0, 16_000, 2)
ENCODED = encode(SOUND, 16_000, "flac")
FRAMES = [at for at in boundaries("flac", ENCODED) if ENCODED[at : at + 2] == b"\xff\xf8"]


def without_counts(encoded: bytes, md5: bool = True) -> bytes:
    """As a program writes it that cannot go back: the number of samples unknown, and their checksum if asked."""
    unknown = int.from_bytes(encoded[18:26]) & ~(2**36 - 1)
    return encoded[:18] + unknown.to_bytes(8) + (bytes(16) if md5 else encoded[26:42]) + encoded[42:]


def remuxed(encoded: bytes, muxer: str) -> bytes:
    """The same packets in another container."""
    target = io.BytesIO()
    with av.open(io.BytesIO(encoded)) as source, av.open(target, "w", format=muxer) as output:
        stream = output.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    return target.getvalue()


def test_a_flipped_bit_never_changes_what_is_heard() -> None:
    expected = decode(ENCODED)
    refused = 0
    places = [*range(84), *range(FRAMES[0] - 20, len(ENCODED), 101)]  # all but the padding
    for at in places:
        damaged = bytearray(ENCODED)
        damaged[at] ^= 1 << at % 8
        try:
            waveform = decode(bytes(damaged))
        except ServiceError:  # a length of hours is too long, not damaged
            refused += 1
        else:
            np.testing.assert_array_equal(waveform.samples, expected.samples)
            assert (waveform.source_rate, waveform.channels) == (16_000, 2)
    assert refused > 0.9 * len(places)


@pytest.mark.parametrize("muxer", ["matroska", "mp4", "ogg"])
def test_frames_are_judged_in_every_container(muxer: str) -> None:
    whole = remuxed(ENCODED, muxer)
    np.testing.assert_array_equal(decode(whole).samples, decode(ENCODED).samples)
    at = whole.index(ENCODED[FRAMES[2] + 200 : FRAMES[2] + 264])
    damaged = whole[:at] + bytes([whole[at] ^ 8]) + whole[at + 1 :]
    with pytest.raises(BadAudio):
        decode(damaged)


def test_damage_without_counts() -> None:
    at = FRAMES[2] + 200
    for md5 in (True, False):
        plain = without_counts(ENCODED, md5)
        np.testing.assert_array_equal(decode(plain).samples, decode(ENCODED).samples)
        with pytest.raises(BadAudio):
            decode(plain[:at] + bytes([plain[at] ^ 1]) + plain[at + 1 :])


@pytest.mark.parametrize("md5", [True, False])
def test_a_lost_frame_is_missed(md5: bool) -> None:
    plain = without_counts(ENCODED, md5)
    with pytest.raises(BadAudio):
        decode(plain[: FRAMES[1]] + plain[FRAMES[2] :])


@pytest.mark.parametrize("codec_bits", [(16, "s16"), (24, "s32")])
def test_the_checksum_is_of_every_width(codec_bits: tuple[int, str]) -> None:
    bits, form = codec_bits
    target = io.BytesIO()
    with av.open(target, "w", format="flac") as output:
        stream = output.add_stream("flac", rate=16_000, layout="mono")
        stream.format = form
        stream.options = {"bits_per_raw_sample": str(bits)}
        scaled = np.round(SOUND[:, :1].T * 2.0 ** (bits - 1)).astype(np.int64) << (8 * int(form[1:]) // 8 - bits)
        frame = av.AudioFrame.from_ndarray(scaled.astype(f"i{int(form[1:]) // 8}"), form, "mono")
        frame.sample_rate = 16_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            output.mux(packet)
    encoded = target.getvalue()
    assert any(encoded[26:42])
    np.testing.assert_allclose(decode(encoded).samples, SOUND[:, 0], atol=1e-4)
    wrong = encoded[:26] + bytes([encoded[26] ^ 1]) + encoded[27:]
    with pytest.raises(BadAudio, match="checksum"):
        decode(wrong)


def test_frames_without_their_beginning_are_named() -> None:
    for at in FRAMES[:2]:
        with pytest.raises(BadAudio, match="'fLaC'"):
            decode(ENCODED[at:])
