"""One pass over a recording: against each window run alone, under cancellation, faults and a small queue."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from service.engine.engine import answer
from service.engine.listening import Heard, listen
from service.errors import BadAudio, ClipTooShort, ServiceError
from service.model.backbone import Backbone
from service.model.bank import Bank
from service.registry.store import AdapterVersion
from tests.engine.test_engine import Bench
from tests.synthesis import noise

Samples = NDArray[np.float32]


async def blocks_of(samples: Samples, size: int = 5_000, error: Exception | None = None) -> AsyncIterator[Samples]:
    for at in range(0, len(samples), size):
        yield samples[at : at + size]
        await asyncio.sleep(0)
    if error is not None:
        raise error


def heard(bench: Bench, adapters: list[AdapterVersion], blocks: AsyncIterator[Samples], **more: Any) -> list[Heard]:
    async def run() -> list[Heard]:
        return [one async for one in listen(bench.engine, adapters, blocks, 0.2, **more)]

    return asyncio.run(run())


def alone(bench: Bench, samples: Samples, version: AdapterVersion, hop_frames: int = 20) -> tuple[Samples, Any]:
    """All windows' scores and spans, by the whole-clip path."""
    spec = replace(version.manifest.recording_spec(), windows=None, hop_frames=hop_frames)
    windows = bench.backbone.features.windows(torch.from_numpy(samples), spec)
    with torch.inference_mode():
        bank = Bank.of(bench.backbone, [bench.registry.load(version)])
        outputs = bench.backbone.answer(windows.inputs, bank, [1] * len(windows.inputs))
    return answer(version.manifest, outputs.numpy()), windows.spans


def check(bench: Bench, found: list[Heard], samples: Samples, adapters: list[AdapterVersion]) -> None:
    for index, version in enumerate(adapters):
        own = [one for one in found if one.index == index]
        values, spans = alone(bench, samples, version)
        assert [span for one in own for span in one.spans] == list(spans)
        assert [one.number for one in own] == np.cumsum([0, *(len(one.spans) for one in own)])[:-1].tolist()
        got = np.concatenate([one.values for one in own])
        assert np.abs(got - values).max() <= 1e-5 * np.abs(values).max()
        assert {one.adapter for one in own} == {version}


@pytest.fixture(params=["ast", "wav2vec2"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    found: Backbone = request.getfixturevalue(f"tiny_{request.param}")
    return found


@pytest.fixture
def bench(backbone: Backbone, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(backbone, tmp_path, queue_seconds=60.0)  # less than the recording asks for in all
    bench.engine.start()
    yield bench
    bench.engine.stop(1.0)


def classifiers(bench: Bench) -> list[AdapterVersion]:
    kinds: list[dict[str, Any]] = [{}, {"activation": "sigmoid", "calibration": {"temperature": 2.0}}]
    longer = {"input": {"sampling_rate": 16000, "window_frames": 230, "windows": 1, "mean": 0.1, "std": 0.4}}
    shorter = {"events": {"window_frames": 60}}  # than a clip's
    return [bench.adapter(f"hears-{i}", seed=i, **kind) for i, kind in enumerate([*kinds, longer, shorter])]


def test_several_adapters_on_one_pass_hear_what_each_hears_alone(bench: Bench) -> None:
    samples = noise(21.37, seed=5)[:, 0]
    adapters = classifiers(bench)
    found = heard(bench, adapters, blocks_of(samples))
    check(bench, found, samples, adapters)
    assert [one.seconds for one in found] == sorted(one.seconds for one in found)
    assert not bench.engine.room.held
    assert bench.telemetry.audio_seconds_total._value.get() == pytest.approx(21.37, abs=0.001)


def test_a_pass_goes_on_where_another_broke_off(bench: Bench) -> None:
    samples = noise(5.05, seed=6)[:, 0]
    adapters = classifiers(bench)[:1]
    whole = np.concatenate([one.values for one in heard(bench, adapters, blocks_of(samples))])
    rest = heard(bench, adapters, blocks_of(samples), first=9)
    assert rest[0].number == 9
    np.testing.assert_allclose(np.concatenate([one.values for one in rest]), whole[9:], atol=1e-6)


def test_what_was_heard_before_a_break_is_kept(bench: Bench) -> None:
    samples = noise(4.07, seed=7)[:, 0]
    adapters = classifiers(bench)[:1]
    found: list[Heard] = []

    async def run() -> ServiceError:
        try:
            async for one in listen(bench.engine, adapters, blocks_of(samples, error=BadAudio("broken")), 0.2):
                found.append(one)
        except ServiceError as error:
            return error
        raise AssertionError("nothing was told")

    error = asyncio.run(run())
    assert error.at == pytest.approx(4.07)
    check(bench, found, samples, adapters)  # as if it ended there


def test_a_break_before_the_first_window_is_the_only_answer(bench: Bench) -> None:
    with pytest.raises(BadAudio, match="broken") as caught:
        heard(bench, classifiers(bench)[:1], blocks_of(noise(0.1)[:, 0], error=BadAudio("broken")))
    assert caught.value.at is None
    with pytest.raises(ClipTooShort):
        heard(bench, classifiers(bench)[:1], blocks_of(noise(0.01)[:, 0]))


def test_closing_leaves_nothing_behind(bench: Bench) -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[Samples]:
        try:
            while True:
                yield noise(5.0)[:, 0]
        finally:
            closed.set()

    async def run() -> None:
        blocks = endless()
        passing = listen(bench.engine, classifiers(bench), blocks, 0.2)
        await anext(passing)
        await passing.aclose()
        await blocks.aclose()  # type: ignore[attr-defined]
        assert closed.is_set()
        assert not bench.engine.room.held

    asyncio.run(run())


def test_a_full_queue_is_waited_for(bench: Bench) -> None:
    samples = noise(3.0)[:, 0]
    room = bench.engine.room

    async def run() -> int:
        room.take({"others": room.frames})
        listening = asyncio.ensure_future(anext(listen(bench.engine, classifiers(bench)[:1], blocks_of(samples), 0.2)))
        await asyncio.sleep(0.2)
        assert not listening.done()
        room.give_back({"others": room.frames})
        return len((await listening).values)

    assert asyncio.run(run()) > 0
