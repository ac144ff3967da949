"""Recordings decoded as they come, against the same bytes decoded as a whole."""

import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.audio.arriving import Arriving
from service.audio.decode import DEFAULT_LIMITS, decode, decode_arriving
from service.audio.mixdown import Mixdown
from service.audio.source import IDLE_BYTES
from service.errors import AudioTooLong, BadAudio, ClipTooShort, InvalidRequest, ServiceError
from tests.audio.corpus import hostile_files
from tests.synthesis import CONTAINERS, ContainerName, encode, noise

EXAMPLES = sorted((Path(__file__).parents[2] / "adapters" / "examples").glob("*.*"))
EXAMPLES = [path for path in EXAMPLES if path.suffix not in (".md", ".sh")]
GARBAGE = {"mp3 and then m4a": 500}  # samples that the whole takes what is behind it for
CLIPS = {name: encode(noise(3.3, 48_000, 2, seed=1), 48_000, name) for name in CONTAINERS}


def chunks_of(encoded: bytes, size: int) -> Iterator[bytes]:
    return (encoded[at : at + size] for at in range(0, len(encoded), size))


def arrived(encoded: bytes, size: int = 700, seconds: float = 300.0) -> tuple[NDArray[np.float32], Mixdown]:
    blocks: list[NDArray[np.float32]] = []
    mixdown = Mixdown(replace(DEFAULT_LIMITS, max_seconds=seconds), sink=blocks.append)
    decode_arriving(chunks_of(encoded, size), mixdown)
    return np.concatenate(blocks), mixdown


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("size", [97, 5_000, 10**9])
def test_every_container_has_the_samples_of_the_whole(name: ContainerName, size: int) -> None:
    whole = decode(CLIPS[name])
    samples, mixdown = arrived(CLIPS[name], size)
    np.testing.assert_array_equal(samples, whole.samples)
    assert mixdown.first == (whole.source_rate, whole.channels)
    assert mixdown.seconds == pytest.approx(whole.seconds, abs=1e-3)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_example_clips_too(path: Path) -> None:
    np.testing.assert_array_equal(arrived(path.read_bytes())[0], decode(path.read_bytes()).samples)


def test_chained_links_and_tags() -> None:
    for encoded in (
        CLIPS["opus"] + encode(noise(1.0, 48_000, 2, seed=2), 48_000, "opus"),
        b"ID3\x04\0\0" + bytes((0, 30, 0, 0)) + bytes(30 * 2**14) + CLIPS["mp3"],
        bytes(50) + CLIPS["mp3"],
    ):
        np.testing.assert_array_equal(arrived(encoded)[0], decode(encoded).samples)


def test_hostile_files_fare_no_better_in_pieces() -> None:
    """What is refused as a whole is refused as it comes, at the latest at its end; what is not has the same samples."""
    wrong = []
    for name, encoded in hostile_files().items():
        whole = outcome(lambda one: decode(one).samples, encoded)
        pieces = outcome(lambda one: arrived(one, 4_096)[0], encoded)
        if isinstance(whole, str) or isinstance(pieces, str):
            if whole != pieces:
                wrong.append(
                    f"{name}: {whole if isinstance(whole, str) else 'audio'} as a whole, {pieces!r:.30} in pieces"
                )
        elif not np.array_equal(whole[: len(pieces)], pieces) or len(whole) > len(pieces) + GARBAGE.get(name, 0):
            wrong.append(f"{name}: other samples")
    assert not wrong, "\n".join(wrong)


def outcome(take: Callable[[bytes], NDArray[np.float32]], encoded: bytes) -> NDArray[np.float32] | str:
    try:
        return take(encoded)
    except ServiceError as error:
        return error.code


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_file_that_breaks_off_keeps_what_came(name: ContainerName) -> None:
    encoded, blocks = CLIPS[name], list[NDArray[np.float32]]()
    with pytest.raises(BadAudio, match=r"cut off|cannot be decoded"):
        decode_arriving(chunks_of(encoded[: len(encoded) * 2 // 3], 700), Mixdown(DEFAULT_LIMITS, sink=blocks.append))
    if name == "m4a":  # its index is at its end
        assert not blocks
    else:
        came = np.concatenate(blocks)
        assert len(came) > 16_000
        np.testing.assert_allclose(came[:16_000], decode(encoded).samples[:16_000], atol=1e-4)


def test_an_mp4_that_breaks_off_keeps_what_came_where_its_index_is_in_front(tmp_path: Path) -> None:
    target, source = tmp_path / "fast.m4a", av.open(io.BytesIO(CLIPS["m4a"]))
    with source, av.open(str(target), "w", format="mp4", options={"movflags": "faststart"}) as output:
        stream = output.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    encoded, blocks = target.read_bytes(), list[NDArray[np.float32]]()
    assert encoded.index(b"moov") < encoded.index(b"mdat")
    cut = encoded[: len(encoded) * 2 // 3]
    with pytest.raises(BadAudio, match=f"cut off: {len(encoded) - len(cut)} bytes"):
        decode_arriving(chunks_of(cut, 700), Mixdown(DEFAULT_LIMITS, sink=blocks.append))
    came = np.concatenate(blocks)
    assert len(came) > 16_000
    np.testing.assert_allclose(came[:16_000], decode(encoded).samples[:16_000], atol=1e-4)


def test_samples_come_while_the_file_does() -> None:
    for name in ("wav", "flac", "mp3", "opus", "webm", "aac"):
        blocks: list[NDArray[np.float32]] = []
        came: list[int] = []

        def counted(name: str, blocks: list[NDArray[np.float32]], came: list[int]) -> Iterator[bytes]:
            for chunk in chunks_of(CLIPS[name], 2_000):
                came.append(sum(map(len, blocks)))
                yield chunk

        decode_arriving(counted(name, blocks, came), Mixdown(DEFAULT_LIMITS, sink=blocks.append))
        assert came[-1] > 8_000, name


def test_limits_hold_as_it_comes() -> None:
    endless = (bytes(2**16) for _ in iter(int, 1))
    begin = CLIPS["wav"].index(b"data") + 4
    header = CLIPS["wav"][:begin] + b"\xff\xff\xff\xff"

    def chunks() -> Iterator[bytes]:
        yield header
        yield from endless

    with pytest.raises(AudioTooLong, match="more than 20 s"):
        decode_arriving(chunks(), Mixdown(replace(DEFAULT_LIMITS, max_seconds=20), sink=lambda block: None))
    announced = CLIPS["wav"][:begin] + struct.pack("<I", 2**31 - 2**20)
    with pytest.raises(AudioTooLong):  # at once
        decode_arriving(iter([announced]), Mixdown(DEFAULT_LIMITS, sink=lambda block: None))


@pytest.mark.parametrize(
    "element",
    [
        b"\x19\x41\xa4\x69\x08\x40\0\0\0"
        + b"\x61\xa7\x08\x3f\xff\xff\xf0"
        + b"\x46\x5c\x08\x3f\xff\xff\x00",  # attached
        b"\x1f\x43\xb6\x75\x01" + b"\xff" * 7 + b"\xe7\x81\0" + b"\xa3\x08\x3f\xff\xff\x00",  # a block in a cluster
    ],
    ids=["attachment", "block"],
)
def test_what_a_demuxer_would_keep_is_bounded(element: bytes) -> None:
    """A gigabyte that one element of a webm claims: FFmpeg keeps what comes of it."""
    webm = CLIPS["webm"]
    segment, cluster = webm.index(b"\x18\x53\x80\x67") + 4, webm.index(b"\x1f\x43\xb6\x75")
    width = 9 - webm[segment].bit_length()
    head = webm[:segment] + b"\x01" + b"\xff" * 7 + webm[segment + width : cluster]
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield head + element
        while sent < 2**30:
            sent += 2**16
            yield bytes(2**16)

    with pytest.raises(BadAudio, match="without any audio"):
        decode_arriving(endless(), Mixdown(DEFAULT_LIMITS))
    assert sent <= IDLE_BYTES + 2**20


def test_nothing_and_next_to_nothing() -> None:
    with pytest.raises(InvalidRequest, match="empty"):
        decode_arriving(iter([]), Mixdown(DEFAULT_LIMITS))
    with pytest.raises(ClipTooShort):
        decode_arriving(iter([encode(noise(0.02)[:, 0])]), Mixdown(DEFAULT_LIMITS, sink=lambda block: None))
    with pytest.raises(BadAudio, match="no audio file"):
        decode_arriving(iter([b"hello, this is no audio"]), Mixdown(DEFAULT_LIMITS))


@given(st.binary(max_size=200), st.lists(st.integers(1, 30), max_size=30), st.integers(1, 50))
@settings(max_examples=50, deadline=None)
def test_arriving_is_a_file_read_once(content: bytes, steps: list[int], size: int) -> None:
    arriving, model = Arriving(chunks_of(content, size)), io.BytesIO(content)
    for step in steps:
        assert arriving.peek(step) == content[model.tell() : model.tell() + step]
        if step % 3 == 0:
            assert arriving.skip(step) == len(model.read(step))
        else:
            piece = arriving.read(step)
            assert piece == model.read(len(piece))
            assert piece or model.tell() == len(content)
        assert arriving.position == model.tell()
    assert b"".join(arriving.rest()) == model.read()
