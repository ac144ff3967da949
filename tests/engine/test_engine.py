"""The engine whole: real backbone, real registry, real threads; answers against each adapter run alone."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service.audio.waveform import Waveform
from service.engine.engine import Engine, answer
from service.engine.slots import State
from service.errors import AdapterFailed, NoFreeSlot, NotReady, Overloaded, PayloadTooLarge
from service.model.backbone import Backbone
from service.model.bank import Bank
from service.model.spec import ModelType, TaskType
from service.registry.store import AdapterVersion, Registry
from service.settings import Settings
from service.telemetry import Telemetry
from tests.bundles import random_bundle
from tests.engine.asking import infer, open_engine


class Bench:
    """An engine over adapters of random weights, of different tasks, prompts, bottlenecks and windows."""

    def __init__(self, backbone: Backbone, directory: Path, **settings: Any) -> None:
        self.backbone = backbone
        self.directory = directory
        self.registry = Registry(directory / "data", backbone.spec, grace_seconds=60)
        self.telemetry = Telemetry()
        defaults = {"adapter_slots": 3, "max_prompt_length": 16, "max_bottleneck_dim": 16, "batch_ms": 60_000}
        self.engine = open_engine(backbone, self.registry, Settings(**{**defaults, **settings}), self.telemetry)

    def adapter(self, name: str, seed: int = 0, **fields: Any) -> AdapterVersion:
        files = random_bundle(self.directory, self.backbone.spec, name, seed, **fields)
        return self.registry.publish(name, files.config, files.weights).version

    def version_2_adapters(self) -> list[AdapterVersion]:
        """One adapter for each part of bundle format 2, and one with all of them."""
        parts: list[dict[str, Any]] = [
            {"conv_kernel": 7},
            {"layer_aggregation": True, "task": TaskType.VERIFICATION},
            {"conv_kernel": 3, "layer_aggregation": True, "prompt_length": 0},
        ]
        if self.backbone.spec.model_type is ModelType.AST:
            parts += [{"input_prompt": 5}, {"input_prompt": 9, "conv_kernel": 5, "layer_aggregation": True}]
        return [
            self.adapter(f"version-2-{i}", seed=i, format_version=2, **kind) for i, kind in enumerate(parts, start=10)
        ]

    def adapters(self, count: int) -> list[AdapterVersion]:
        kinds: list[dict[str, Any]] = [
            {"prompt_length": 5, "bottleneck_dim": 0},
            {"prompt_length": 0, "bottleneck_dim": 7, "adapter_residual": True},
            {"prompt_length": 9, "bottleneck_dim": 16, "task": TaskType.VERIFICATION},
            {"activation": "sigmoid", "calibration": {"temperature": 2.0}},
        ]
        return [self.adapter(f"adapter-{i}", seed=i, **kinds[i % len(kinds)]) for i in range(count)]

    def alone(self, clip: Waveform, version: AdapterVersion) -> np.ndarray:
        """What the adapter says of the clip with nothing else around."""
        weights = self.registry.load(version)
        windows = self.backbone.features.windows(torch.from_numpy(clip.samples), version.manifest.input_spec())
        with torch.inference_mode():
            bank = Bank.of(self.backbone, [weights])
            outputs = self.backbone.answer(windows.inputs, bank, [1] * len(windows.inputs))
        return answer(version.manifest, outputs.numpy())


def state_of(engine: Engine, version: AdapterVersion) -> State:
    [place] = engine.device.residences([version])
    return place.state


def clip(seconds: float = 1.5, seed: int = 0) -> Waveform:
    samples = np.random.default_rng(seed).normal(0, 0.1, int(16_000 * seconds)).astype(np.float32)
    return Waveform(samples, 16_000, 1)


@pytest.fixture(params=["ast", "wav2vec2"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    found: Backbone = request.getfixturevalue(f"tiny_{request.param}")
    return found


@pytest.fixture
def bench(tiny_wav2vec2: Backbone, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tiny_wav2vec2, tmp_path)
    bench.engine.start()
    yield bench
    bench.engine.stop(1.0)


def test_mixed_requests_equal_each_adapter_alone(backbone: Backbone, tmp_path: Path) -> None:
    bench = Bench(backbone, tmp_path, batch_seconds=4.0)  # more adapters than slots, clips cut over several batches
    adapters = bench.adapters(4) + bench.version_2_adapters()
    clips = [clip(seconds, seed) for seed, seconds in enumerate((0.3, 1.5, 7.3))]
    bench.engine.start()

    async def ask_all() -> list[Any]:
        requests = [infer(bench.engine, clips, adapters[i:] + adapters[:i]) for i in range(4)]
        return await asyncio.gather(*requests)

    try:
        answers = asyncio.run(ask_all())
    finally:
        bench.engine.stop(1.0)
    alone = {(c, version): bench.alone(clip, version) for c, clip in enumerate(clips) for version in adapters}
    for i, request in enumerate(answers):
        for c, parts in enumerate(request):
            assert [part.adapter for part in parts] == adapters[i:] + adapters[:i]
            for part in parts:
                expected = alone[c, part.adapter]
                assert part.values.shape == expected.shape
                assert len(part.spans) == len(expected)
                assert np.abs(part.values - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_request_keeps_its_version(bench: Bench) -> None:
    first, second = bench.adapter("moving", seed=1), bench.adapter("moving", seed=2)
    [[old]], [[new]] = (asyncio.run(infer(bench.engine, [clip()], [version])) for version in (first, second))
    assert np.allclose(old.values, bench.alone(clip(), first), atol=1e-6)
    assert np.allclose(new.values, bench.alone(clip(), second), atol=1e-6)
    assert not np.allclose(old.values, new.values, atol=1e-3)


def test_a_damaged_adapter_fails_alone(bench: Bench) -> None:
    good, bad = bench.adapter("good"), bench.adapter("bad", seed=1)
    weights = bench.registry.weights_path(bad)
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")

    async def ask() -> list[Any]:
        requests = [infer(bench.engine, [clip()], [version]) for version in (good, bad, good)]
        return await asyncio.gather(*requests, return_exceptions=True)

    first, failure, last = asyncio.run(ask())
    assert isinstance(failure, AdapterFailed)
    assert failure.adapter == "bad@1"
    assert state_of(bench.engine, bad) is State.FAILED
    assert bench.engine.device.residences([bad])[0].failure
    assert np.array_equal(first[0][0].values, last[0][0].values)
    with pytest.raises(AdapterFailed):
        asyncio.run(infer(bench.engine, [clip()], [bad]))


def test_load_pin_unload(bench: Bench) -> None:
    adapters = bench.adapters(4)

    async def walk() -> None:
        engine = bench.engine
        for version in adapters[:3]:
            await engine.device.pin(version)
        assert [state_of(engine, version) for version in adapters] == [*([State.RESIDENT] * 3), State.REGISTERED]
        with pytest.raises(NoFreeSlot):
            await engine.device.load(adapters[3])
        with pytest.raises(NoFreeSlot):
            await infer(engine, [clip()], [adapters[3]])
        await engine.device.unpin(adapters[0])
        await engine.device.load(adapters[3])
        assert state_of(engine, adapters[0]) is State.REGISTERED
        await engine.device.unload(adapters[3])
        assert state_of(engine, adapters[3]) is State.REGISTERED

    asyncio.run(walk())


class Brake:
    """Holds the device until released, as a slow forward would."""

    def __init__(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        self.released = threading.Event()
        self.running = threading.Event()
        self.rows: list[int] = []
        answer = bench.backbone.answer

        def slow(inputs: torch.Tensor, bank: Bank, slots: list[int], rows: list[int]) -> torch.Tensor:
            self.rows.append(len(slots))
            self.running.set()
            assert self.released.wait(30)
            return answer(inputs, bank, slots, rows)

        monkeypatch.setattr(bench.backbone, "answer", slow)


def test_what_gathers_while_the_device_is_busy_runs_as_one_batch(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    adapters = bench.adapters(3)
    asyncio.run(infer(bench.engine, [clip(0.6)], adapters))
    brake = Brake(bench, monkeypatch)

    def asked() -> float:
        metric, names = "ipet_adapter_requests_total", [version.name for version in adapters]
        return sum(bench.telemetry.registry.get_sample_value(metric, {"adapter": name}) or 0.0 for name in names)

    async def ask() -> None:
        before = asked()
        first = asyncio.create_task(infer(bench.engine, [clip(0.6)], adapters[:1]))
        await asyncio.to_thread(brake.running.wait, 30)
        others = [asyncio.create_task(infer(bench.engine, [clip(0.6, i)], [adapters[i % 3]])) for i in range(6)]
        while asked() < before + 7:
            await asyncio.sleep(0.01)
        brake.released.set()
        await asyncio.gather(first, *others)

    asyncio.run(ask())
    assert brake.rows == [1, 6]


def test_abandoned_and_late_requests_never_reach_the_device(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    [adapter] = bench.adapters(1)
    asyncio.run(infer(bench.engine, [clip(0.6)], [adapter]))
    brake = Brake(bench, monkeypatch)

    async def ask() -> None:
        first = asyncio.create_task(infer(bench.engine, [clip(0.6)], [adapter]))
        await asyncio.to_thread(brake.running.wait, 30)
        gone = asyncio.create_task(infer(bench.engine, [clip(0.6)], [adapter]))
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            await infer(bench.engine, [clip(0.6)], [adapter], deadline=started + 0.1)
        assert time.monotonic() - started < 10.0  # the device is held for longer
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        brake.released.set()
        await first

    asyncio.run(ask())
    asyncio.run(infer(bench.engine, [clip(0.6)], [adapter]))
    assert brake.rows == [1, 1]


def test_overload(tiny_wav2vec2: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tiny_wav2vec2, tmp_path, queue_seconds=5.6)
    [adapter] = bench.adapters(1)
    with pytest.raises(NotReady):
        asyncio.run(infer(bench.engine, [clip()], [adapter]))
    bench.engine.start()
    brake = Brake(bench, monkeypatch)

    async def ask() -> None:
        with pytest.raises(PayloadTooLarge):
            await infer(bench.engine, [clip(30)], [adapter])
        first = asyncio.create_task(infer(bench.engine, [clip(0.6)], [adapter]))
        await asyncio.to_thread(brake.running.wait, 30)
        queued = [asyncio.create_task(infer(bench.engine, [clip(0.6)], [adapter])) for _ in range(3)]
        await asyncio.sleep(0.1)
        with pytest.raises(Overloaded) as refused:
            await infer(bench.engine, [clip(0.6)], [adapter])
        assert refused.value.retry_after
        queued[0].cancel()  # makes room at once
        await asyncio.gather(queued[0], return_exceptions=True)
        replacement = asyncio.create_task(infer(bench.engine, [clip(0.6)], [adapter]))
        await asyncio.sleep(0.1)
        brake.released.set()
        await asyncio.gather(first, replacement, *queued[1:])

    try:
        asyncio.run(ask())
    finally:
        bench.engine.stop(1.0)
    with pytest.raises(NotReady):
        asyncio.run(infer(bench.engine, [clip()], [adapter]))


def test_stopping_finishes_what_was_admitted(tiny_wav2vec2: Backbone, tmp_path: Path) -> None:
    bench = Bench(tiny_wav2vec2, tmp_path)
    adapters = bench.adapters(3)
    bench.engine.start()

    async def ask() -> list[Any]:
        requests = [asyncio.create_task(infer(bench.engine, [clip(0.6, i)], adapters)) for i in range(8)]
        await asyncio.sleep(0.05)
        await asyncio.to_thread(bench.engine.stop, 10.0)
        return await asyncio.gather(*requests)

    assert len(asyncio.run(ask())) == 8
