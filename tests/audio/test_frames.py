"""Streams of frames: pieces of them, what may lie before them, and what only looks like one."""

import struct

import numpy as np
import pytest

from service.audio.containers import Container, sniff
from service.audio.decode import decode
from service.audio.frames import frame_length, is_flac_frame, stream_kind
from service.errors import BadAudio
from tests.audio.forge import id3, noise_bytes
from tests.synthesis import ContainerName, encode, loudest_hz, noise, tone

STREAMS: tuple[ContainerName, ...] = ("mp3", "aac")


def bare(encoded: bytes) -> bytes:
    """A stream without the tag and the frame of counts before it."""
    encoded = encoded[sniff(encoded).start :]
    return encoded if encoded[1] & 0xF6 == 0xF0 else encoded[frame_length("mp3", encoded[:7]) :]


SOUND = tone(2.0, 440.0, 44_100) + noise(2.0, 44_100, level=0.03)  # noise fills the frames
ENCODED = {name: bare(encode(SOUND, 44_100, name)) for name in STREAMS}


def starts(name: ContainerName) -> list[int]:
    encoded, found = ENCODED[name], [0]
    while found[-1] < len(encoded):
        assert frame_length("mp3" if name == "mp3" else "aac", encoded[found[-1] : found[-1] + 7])
        found.append(found[-1] + frame_length("mp3" if name == "mp3" else "aac", encoded[found[-1] : found[-1] + 7]))
    assert found.pop() == len(encoded)
    return found


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_known_by_frames_that_follow_one_another(name: ContainerName) -> None:
    kind = "mp3" if name == "mp3" else "aac"
    assert stream_kind(ENCODED[name], 0, 20) == kind
    assert stream_kind(ENCODED[name], 1, 1) is None
    assert sniff(ENCODED[name]).container is (Container.MP3 if name == "mp3" else Container.ADTS)


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("cut", [1, 100, 301, 700, 1_300])
def test_a_piece_of_a_stream_is_heard(name: ContainerName, cut: int) -> None:
    """It begins and ends within a frame: nobody cut off a file."""
    for end in (0, 11):
        piece = ENCODED[name][cut : len(ENCODED[name]) - end]
        assert sniff(piece).dump
        waveform = decode(piece)
        assert 1.7 < waveform.seconds < 2.1
        assert loudest_hz(waveform.samples[4_000:20_000]) == pytest.approx(440.0, abs=2.0)


@pytest.mark.parametrize("zeros", [1, 417, 65_535, 65_536])
def test_zero_bytes_before_a_stream_are_passed_over(zeros: int) -> None:
    encoded = ENCODED["mp3"]
    np.testing.assert_array_equal(decode(bytes(zeros) + encoded).samples, decode(encoded).samples)
    np.testing.assert_array_equal(decode(bytes(zeros) + id3(bytes(40)) + encoded).samples, decode(encoded).samples)
    with pytest.raises(BadAudio, match="cut off"):  # what begins at a frame and ends within one ends early
        decode(bytes(zeros) + encoded[:-9])


def test_more_zero_bytes_are_no_audio() -> None:
    with pytest.raises(BadAudio, match="no audio file"):
        decode(bytes(65_600) + ENCODED["mp3"])


def counted(frames: int | None, size: int | None, lost: int = 0, tag: str = "Xing") -> bytes:
    """A stream behind a frame that states so many frames and bytes, less its last `lost` frames."""
    places = starts("mp3")
    body = ENCODED["mp3"][: places[len(places) - lost] if lost else None]
    first = ENCODED["mp3"][places[1] : places[2]]
    flags = (frames is not None) + 2 * (size is not None)
    fields = b"".join(struct.pack(">I", field) for field in (frames, size) if field is not None)
    side = 4 + (17 if first[3] >> 6 == 3 else 32)
    head = first[:4] + bytes(side - 4) + tag.encode() + struct.pack(">I", flags) + fields
    return head.ljust(len(first), b"\0") + body


FRAMES = len(starts("mp3"))
SIZE = len(counted(1, 1))


@pytest.mark.parametrize("tag", ["Xing", "Info"])
@pytest.mark.parametrize("wrong", [-4_000, -1, 0, 128, 4_000, 200_000])
def test_a_wrong_number_of_bytes_does_no_harm_where_all_frames_are_there(wrong: int, tag: str) -> None:
    whole = decode(counted(FRAMES, SIZE, tag=tag))
    np.testing.assert_array_equal(decode(counted(FRAMES, SIZE + wrong, tag=tag)).samples, whole.samples)
    decode(counted(FRAMES + 1, SIZE, tag=tag))  # some count the first one too
    decode(counted(FRAMES + 1, SIZE + 128, tag=tag))
    decode(counted(None, SIZE + 128, tag=tag))


@pytest.mark.parametrize("lost", [1, 2, 20])
@pytest.mark.parametrize("frames", [FRAMES, None])
def test_a_file_that_ends_early_is_refused(lost: int, frames: int | None) -> None:
    for wrong in (0, 128):
        with pytest.raises(BadAudio, match="cut off"):
            decode(counted(frames, SIZE + wrong, lost))
    with pytest.raises(BadAudio, match="cut off"):
        decode(counted(FRAMES, None, lost + 1))


@pytest.mark.parametrize("head", [b"\xff\xf8\xc9\x18", b"\xff\xf9\x50\x80", b"\xff\xfb\x90\x64", b"\xff\xf1\x50\x80"])
def test_bytes_that_only_begin_like_a_frame_are_told_plainly(head: bytes) -> None:
    with pytest.raises(BadAudio, match="no audio file that is accepted"):
        decode(head + noise_bytes(20_000, 3))


def test_headers_of_flac_frames() -> None:
    encoded = encode(SOUND, 44_100, "flac")
    at = encoded.index(b"\xff\xf8")
    assert is_flac_frame(encoded[at : at + 17])
    assert not is_flac_frame(encoded[at : at + 5] + bytes([encoded[at + 5] ^ 1]) + encoded[at + 6 : at + 17])
    assert not is_flac_frame(b"\xff\xf8")
