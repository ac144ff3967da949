"""Faults of the device: what fails, what does not, and what readiness says meanwhile."""

import asyncio
import logging
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service.engine.health import Watch
from service.errors import NotReady, ServiceError
from service.model.backbone import Backbone
from service.registry.store import AdapterVersion
from tests.engine.asking import infer
from tests.engine.faults import Cuda, Hang, Memory, faulty
from tests.engine.test_engine import Bench, clip
from tests.waiting import soon

TIMEOUT = 1.5  # seconds; a batch of the tiny backbone takes milliseconds
CPU_OUT_OF_MEMORY = "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: ..."


def started(backbone: Backbone, directory: Path, **settings: Any) -> Iterator[Bench]:
    bench = Bench(faulty(backbone), directory, **settings)
    bench.engine.start()
    yield bench
    assert bench.engine.stop(10.0)


@pytest.fixture
def bench(tiny_wav2vec2: Backbone, tmp_path: Path) -> Iterator[Bench]:
    yield from started(tiny_wav2vec2, tmp_path)


@pytest.fixture
def hasty(tiny_wav2vec2: Backbone, tmp_path: Path) -> Iterator[Bench]:
    yield from started(tiny_wav2vec2, tmp_path, device_timeout=TIMEOUT)


def ask(bench: Bench, version: AdapterVersion) -> Any:
    [[outputs]] = asyncio.run(infer(bench.engine, [clip(0.6)], [version]))
    return outputs.values


def ask_at_once(bench: Bench, version: AdapterVersion, count: int, fault: Callable[[int], None]) -> list[Any]:
    """Answers of `count` requests that gather behind another and reach the device as one batch, which has `fault`."""
    brake, before = Hang(), sample(bench, "ipet_adapter_requests_total", adapter=version.name)
    bench.backbone.fault = brake

    async def gather() -> list[Any]:
        first = asyncio.create_task(infer(bench.engine, [clip(0.6)], [version]))
        await asyncio.to_thread(brake.begun.wait, 30)
        requests = [asyncio.create_task(infer(bench.engine, [clip(0.6, i)], [version])) for i in range(count)]
        while sample(bench, "ipet_adapter_requests_total", adapter=version.name) < before + 1 + count:
            await asyncio.sleep(0.01)
        bench.backbone.fault = fault
        brake.released.set()
        await first
        return await asyncio.gather(*requests, return_exceptions=True)

    return asyncio.run(gather())


def readiness(bench: Bench) -> str | None:
    try:
        bench.engine.check_ready()
    except NotReady as error:
        return error.detail
    return None


def sample(bench: Bench, metric: str, **labels: str) -> float:
    return bench.telemetry.registry.get_sample_value(metric, labels) or 0.0


def test_a_batch_that_does_not_fit_is_halved_down_to_one_row_and_that_is_kept(bench: Bench) -> None:
    adapter = bench.adapter("one")
    alone = ask(bench, adapter)
    memory = Memory(rows=3)
    assert not [error for error in ask_at_once(bench, adapter, 6, memory) if isinstance(error, Exception)]
    assert memory.refused == [6]
    tight = Memory(rows=1)
    answers = ask_at_once(bench, adapter, 6, tight)
    assert np.array_equal(answers[0][0][0].values, alone)
    assert not [answer for answer in answers if isinstance(answer, Exception)]
    assert tight.refused == [3, 2]  # six rows are not even tried any more
    again = Memory(rows=1)
    assert not [one for one in ask_at_once(bench, adapter, 6, again) if isinstance(one, Exception)]
    assert not again.refused  # what was learnt is kept
    assert readiness(bench) is None
    assert np.array_equal(ask(bench, adapter), alone)


def test_the_windows_of_one_clip_are_run_apart_where_they_do_not_fit_together(bench: Bench) -> None:
    adapter, long = bench.adapter("one"), clip(5.0)
    [[whole]] = asyncio.run(infer(bench.engine, [long], [adapter]))
    bench.backbone.fault = memory = Memory(rows=1)
    [[apart]] = asyncio.run(infer(bench.engine, [long], [adapter]))
    assert memory.refused
    assert len(whole.values) > 4
    assert np.abs(apart.values - whole.values).max() <= 1e-5


def test_one_row_that_does_not_fit_is_no_internal_error(bench: Bench) -> None:
    adapter = bench.adapter("one")
    bench.backbone.fault = lambda rows: Memory(rows=0)(0 if set(bench.backbone.slots) == {0} else rows)
    with pytest.raises(NotReady, match="no memory left, not even for one window"):
        ask(bench, adapter)
    soon(lambda: readiness(bench) is None, 20)  # the bare backbone still runs
    bench.backbone.fault = lambda rows: None
    ask(bench, adapter)


def test_batches_that_failed_do_not_teach_the_pace(bench: Bench) -> None:
    adapter = bench.adapter("one")
    ask(bench, adapter)
    scheduler = bench.engine.device._shared.scheduler._requests
    before = scheduler.batch_frames
    ask_at_once(bench, adapter, 4, Memory(rows=1))  # it fails in no time
    bench.backbone.fault = lambda rows: Memory(rows=0)(0 if set(bench.backbone.slots) == {0} else rows)
    for _ in range(5):
        with pytest.raises(NotReady):
            ask(bench, adapter)
    assert scheduler.batch_frames == pytest.approx(before, rel=0.9)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "memory"),
        (RuntimeError(CPU_OUT_OF_MEMORY), "memory"),
        (MemoryError(), "memory"),
        (RuntimeError("CUDA error: out of memory"), "memory"),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "memory"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "cuda"),
        (torch.AcceleratorError("CUDA error: unspecified launch failure"), "cuda"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "cuda"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "error"),
    ],
)
def test_what_counts_as_out_of_memory(bench: Bench, error: Exception, kind: str) -> None:
    adapter = bench.adapter("one")
    answers = ask_at_once(bench, adapter, 2, Memory(rows=1, error=error))
    assert not [answer for answer in answers if isinstance(answer, Exception)]
    assert sample(bench, "ipet_device_faults_total", kind=kind) == 1


def test_what_a_failed_forward_held_is_free_before_its_halves_run(bench: Bench) -> None:
    adapter = bench.adapter("one")
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def fault(rows: int) -> None:
        alive.extend(one() is not None for one in held)
        activations = torch.zeros(rows, 1000)
        held.append(weakref.ref(activations))
        if rows > 2:
            raise torch.OutOfMemoryError(f"no room for {activations.shape}")

    logging.disable(logging.CRITICAL)  # pytest's own handler keeps every record, and with it the trace
    try:
        ask_at_once(bench, adapter, 4, fault)
    finally:
        logging.disable(logging.NOTSET)
    assert alive
    assert not any(alive)


def test_a_device_that_hangs(hasty: Bench) -> None:
    """Who waits is told, readiness says why, and all is well once the device has come back."""
    bench, adapter = hasty, hasty.adapter("one")
    alone = ask(bench, adapter)
    hang = bench.backbone.fault = Hang()

    async def gather() -> list[Any]:
        first = asyncio.create_task(infer(bench.engine, [clip(0.6)], [adapter]))
        await asyncio.to_thread(hang.begun.wait, 30)
        queued = [asyncio.create_task(infer(bench.engine, [clip(0.6)], [adapter])) for _ in range(3)]
        return await asyncio.gather(first, *queued, return_exceptions=True)

    began = time.monotonic()
    errors = asyncio.run(gather())
    assert TIMEOUT <= time.monotonic() - began < TIMEOUT + 10
    assert {type(error) for error in errors} == {NotReady}
    assert "has not returned from a batch of 1 rows for 1.5 s" in (readiness(bench) or "")
    with pytest.raises(NotReady, match="has not returned"):
        ask(bench, adapter)
    with pytest.raises(NotReady, match="has not returned"):
        asyncio.run(bench.engine.device.load(bench.adapter("two")))
    assert sample(bench, "ipet_device_broken") == 1
    assert sample(bench, "ipet_device_faults_total", kind="hang") == 1
    bench.backbone.fault = lambda rows: None
    hang.released.set()
    soon(lambda: readiness(bench) is None, 20)
    assert sample(bench, "ipet_device_broken") == 0
    assert np.array_equal(ask(bench, adapter), alone)


def test_an_engine_that_hangs_still_stops(tiny_wav2vec2: Backbone, tmp_path: Path) -> None:
    bench = Bench(faulty(tiny_wav2vec2), tmp_path)
    bench.engine.start()
    adapter, hang = bench.adapter("one"), Hang()
    bench.backbone.fault = hang

    async def gather() -> list[Any]:
        first = asyncio.create_task(infer(bench.engine, [clip(0.6)], [adapter]))
        await asyncio.to_thread(hang.begun.wait, 30)
        queued = asyncio.create_task(infer(bench.engine, [clip(0.6)], [adapter]))
        await asyncio.sleep(0.1)
        stopped = await asyncio.to_thread(bench.engine.stop, 0.1)
        first.cancel()
        return [stopped, *await asyncio.gather(first, queued, return_exceptions=True)]

    try:
        stopped, _, waiting = asyncio.run(gather())
    finally:
        hang.released.set()
    assert not stopped
    assert isinstance(waiting, NotReady)


def test_a_device_that_fails_on_everything(bench: Bench) -> None:
    adapter = bench.adapter("one")
    alone = ask(bench, adapter)
    bench.backbone.fault = Memory(rows=0, error=RuntimeError("could not execute a primitive"))
    with pytest.raises(ServiceError, match="failed while it ran"):
        ask(bench, adapter)
    soon(lambda: "fails whatever it is asked" in (readiness(bench) or ""), 20)
    with pytest.raises(NotReady, match="fails whatever"):
        ask(bench, adapter)
    bench.backbone.fault = lambda rows: None
    soon(lambda: readiness(bench) is None, 20)
    assert np.array_equal(ask(bench, adapter), alone)


def test_a_dead_context_is_told_once_and_asked_no_more(tiny_wav2vec2: Backbone, tmp_path: Path) -> None:
    bench = Bench(faulty(tiny_wav2vec2), tmp_path)
    told: list[Exception] = []
    bench.engine.start(told.append)
    adapter = bench.adapter("one")
    ask(bench, adapter)
    cuda = bench.backbone.fault = Cuda()
    cuda.is_dead = True
    with pytest.raises(ServiceError):
        ask(bench, adapter)
    soon(lambda: bool(told), 20)
    assert "only a new process" in str(told[0])
    with pytest.raises(NotReady, match="context is dead"):
        ask(bench, adapter)
    assert readiness(bench) == str(told[0])
    asked = cuda.asked
    time.sleep(1.5)
    assert (cuda.asked, len(told)) == (asked, 1)
    assert sample(bench, "ipet_device_faults_total", kind="dead") == 1
    assert bench.engine.stop(10.0)


def test_an_error_of_cuda_that_leaves_the_context_alive_ends_nothing(bench: Bench) -> None:
    adapter = bench.adapter("one")
    ask(bench, adapter)
    bench.backbone.fault = Memory(rows=1, error=torch.AcceleratorError("CUDA error: invalid configuration argument"))
    assert not [one for one in ask_at_once(bench, adapter, 2, bench.backbone.fault) if isinstance(one, Exception)]
    assert readiness(bench) is None


def test_a_worker_that_dies(bench: Bench) -> None:
    adapter = bench.adapter("one")
    ask(bench, adapter)

    def fault(rows: int) -> None:
        raise SystemExit

    bench.backbone.fault = fault
    with pytest.raises(NotReady, match="died"):
        ask(bench, adapter)
    assert "died" in (readiness(bench) or "")
    with pytest.raises(NotReady, match="died"):
        ask(bench, adapter)
    assert sample(bench, "ipet_device_faults_total", kind="worker") == 1


def test_watch_tells_once_for_each_run_that_is_too_long() -> None:
    events: list[str] = []
    limit = 0.2
    watch = Watch(limit)
    watch.start()

    def run_briefly(seconds: float) -> None:
        began = time.monotonic()
        with watch.running(lambda: None) as run:
            time.sleep(seconds)
        assert not run.hangs or time.monotonic() - began >= limit  # a busy machine may have made it long

    for _ in range(20):
        run_briefly(0.02)
    for _ in range(2):
        with watch.running(lambda: events.append("long")) as long:
            soon(lambda: long.hangs, 20)
            run_briefly(0.05)  # several at once, each by its own time
            time.sleep(0.3)
    watch.stop()
    assert events == ["long"] * 2
