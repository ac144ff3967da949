"""Recordings decoded beside the event loop: bounded ahead of who hears them, and gone when nobody does."""

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.audio.decode import decode
from service.engine import recording as module
from service.engine.recording import Recordings
from service.errors import AudioTooLong, BadAudio, DeadlineExceeded, Overloaded, ServiceError, StorageFull
from service.registry.quarantine import HEADROOM_BYTES
from service.settings import Settings
from service.telemetry import Telemetry
from tests.synthesis import encode, noise

CLIP = encode(noise(30.0, 44_100, 2, seed=1), 44_100, "flac")

WAV = encode(noise(1.0)[:, 0])
HEADER = WAV[: WAV.index(b"data") + 4] + b"\xff\xff\xff\xff"  # as a pipe writes it


def opened(directory: Path, **changes: Any) -> Recordings:
    return Recordings(Settings(data_dir=directory, **changes), Telemetry())


async def chunks_of(encoded: bytes, size: int = 50_000) -> AsyncIterator[bytes]:
    for at in range(0, len(encoded), size):
        yield encoded[at : at + size]


def heard(recordings: Recordings, chunks: AsyncIterator[bytes]) -> tuple[list[NDArray[np.float32]], Any]:
    async def run() -> tuple[list[NDArray[np.float32]], Any]:
        blocks = []
        async with recordings.open(chunks) as recording:
            async for block in recording.blocks():
                blocks.append(block)
                await asyncio.sleep(0.01)
        return blocks, recording

    return asyncio.run(run())


@pytest.mark.parametrize("container", ["flac", "m4a"])
def test_its_blocks_are_the_clip(tmp_path: Path, container: Any) -> None:
    encoded = encode(noise(30.0, 44_100, 2, seed=1), 44_100, container)
    blocks, recording = heard(opened(tmp_path), chunks_of(encoded))
    np.testing.assert_array_equal(np.concatenate(blocks), decode(encoded).samples)
    assert (recording.source_rate, recording.channels) == (44_100, 2)
    assert recording.seconds == pytest.approx(30.0, abs=0.1)
    assert max(map(len, blocks)) <= module.GATHERED_SAMPLES + 16_384
    assert not list(tmp_path.iterdir())


def test_nothing_is_decoded_far_ahead(tmp_path: Path) -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        yield HEADER
        while True:
            taken += 1
            yield bytes(32_000)

    async def run() -> None:
        recordings = opened(tmp_path)
        async with recordings.open(endless()) as recording:
            blocks = recording.blocks()
            await anext(blocks)
            await asyncio.sleep(0.3)
            assert taken <= 3 * module.BLOCKS_AHEAD
            assert recordings.count == 1
        assert recordings.count == 0

    before = threading.active_count()
    asyncio.run(run())
    assert threading.active_count() <= before + 1  # of the pool, which waits for the next


def test_what_comes_before_a_fault_is_heard(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        async for chunk in chunks_of(CLIP[: len(CLIP) // 2]):
            yield chunk

    got: list[int] = []

    async def run() -> None:
        async with opened(tmp_path).open(broken()) as recording:
            async for block in recording.blocks():
                got.append(len(block))

    with pytest.raises(BadAudio):
        asyncio.run(run())
    assert sum(got) > 14 * 16_000


@pytest.mark.parametrize(
    ("changes", "error"), [({"max_long_seconds": 10.0}, AudioTooLong), ({"request_timeout": 0.1}, DeadlineExceeded)]
)
def test_bounds(tmp_path: Path, changes: dict[str, Any], error: type[ServiceError]) -> None:
    async def stalling() -> AsyncIterator[bytes]:
        async for chunk in chunks_of(CLIP[: len(CLIP) // 2]):
            yield chunk
        await asyncio.sleep(60)

    with pytest.raises(error):
        heard(opened(tmp_path, **changes), stalling())


def test_a_spool_leaves_the_registry_its_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=HEADROOM_BYTES + 30_000))
    m4a = encode(noise(10.0, 44_100), 44_100, "m4a")
    assert len(m4a) > 50_000
    with pytest.raises(StorageFull, match="no room for another 50,000"):
        heard(opened(tmp_path), chunks_of(m4a))


def test_no_more_than_so_many_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 1)

    async def run() -> None:
        recordings = opened(tmp_path)
        async with recordings.open(chunks_of(CLIP)):
            with pytest.raises(Overloaded):
                async with recordings.open(chunks_of(CLIP)):
                    pass
        async with recordings.open(chunks_of(CLIP)):
            pass

    asyncio.run(run())
