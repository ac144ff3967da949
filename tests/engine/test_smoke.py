"""The first inference of an adapter: what it lets in, what it refuses, and for how long anyone waits for it."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch

from service.engine.cost import Costs
from service.engine.smoke import SmokeTest
from service.errors import DeadlineExceeded, InvalidBundle, NotReady
from service.model.adapter import AdapterWeights
from service.model.backbone import Backbone
from service.model.spec import TaskType
from service.registry.manifest import Manifest, build_manifest
from tests.backbones import random_adapter
from tests.bundles import config_of
from tests.engine.faults import Cuda, Hang, Memory, faulty
from tests.waiting import soon

SECONDS = 1.0  # a first inference of the tiny backbone takes milliseconds
MOST_BYTES = 2**30
Candidate = tuple[Manifest, AdapterWeights]


def candidate(backbone: Backbone, **fields: Any) -> Candidate:
    """An adapter with weights that are fine."""
    manifest = build_manifest(config_of(backbone.spec, "candidate", **fields))
    return manifest, random_adapter(manifest.adapter_spec(), backbone.spec)


def smoke_test(
    backbone: Backbone, seconds: float, suspect: Callable[[], None] = lambda: None
) -> Callable[[Manifest, AdapterWeights], None]:
    smoke = SmokeTest(backbone, seconds, Costs(backbone, MOST_BYTES), suspect)
    return lambda manifest, weights: asyncio.run(smoke(manifest, weights))


@pytest.fixture
def hang() -> Iterator[Hang]:
    hang = Hang()
    yield hang
    hang.released.set()  # the interpreter waits for threads of pools when it ends


def until_let_in(smoke: Callable[[Manifest, AdapterWeights], None], fine: Candidate) -> None:
    def is_let_in() -> bool:
        with suppress(NotReady, DeadlineExceeded):
            smoke(*fine)
            return True
        return False

    soon(is_let_in, 10)


@pytest.mark.parametrize("task", [TaskType.CLASSIFICATION, TaskType.VERIFICATION])
@pytest.mark.parametrize("name", ["tiny_ast", "tiny_wav2vec2"])
def test_finite_outputs_pass(name: str, task: TaskType, request: pytest.FixtureRequest) -> None:
    backbone: Backbone = request.getfixturevalue(name)
    rows: list[int] = []
    smoke_test(faulty(backbone, rows.append), 30)(*candidate(backbone, task=task))
    assert rows == [1, 1]  # noise and silence


@pytest.mark.parametrize("part", ["prompt", "adapter.up.weight"])
def test_outputs_that_are_not_finite_are_refused(part: str, tiny_ast: Backbone) -> None:
    manifest, weights = candidate(tiny_ast)
    tensors = {  # finite, as the format asks
        name: torch.full_like(tensor, 3e38) if name.endswith(part) else tensor
        for name, tensor in weights.tensors.items()
    }
    with pytest.raises(InvalidBundle, match="not finite in float32; its weights or its scales are too large"):
        smoke_test(tiny_ast, 30)(manifest, replace(weights, tensors=tensors))


def test_what_the_backbone_cannot_run_is_refused(tiny_ast: Backbone) -> None:
    backbone = faulty(tiny_ast)

    def fault(_: int) -> None:
        if backbone.slots != [0]:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    backbone.fault = fault
    with pytest.raises(InvalidBundle, match="the backbone cannot run the adapter: mat1 and mat2"):
        smoke_test(backbone, 30)(*candidate(tiny_ast))


def test_what_the_bare_backbone_fails_on_too_is_no_fault_of_the_adapter(tiny_ast: Backbone) -> None:
    def fault(_: int) -> None:
        raise RuntimeError("could not create a primitive")

    with pytest.raises(NotReady, match="nothing can be said of the adapter"):
        smoke_test(faulty(tiny_ast, fault), 30)(*candidate(tiny_ast))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: ..."),
        MemoryError(),
        torch.AcceleratorError(Cuda.DEAD),
        RuntimeError("CUDA error: unspecified launch failure"),
    ],
)
def test_a_device_that_fails_is_no_fault_of_the_adapter(error: Exception, tiny_ast: Backbone) -> None:
    with pytest.raises(NotReady, match=r"no memory left|the device fails"):
        smoke_test(faulty(tiny_ast, Memory(rows=0, error=error)), 30)(*candidate(tiny_ast))


def test_it_runs_at_the_adapters_own_window(tiny_wav2vec2: Backbone) -> None:
    """Weights that only a long window shows to be too large."""
    lengths: list[int] = []

    class Measured(type(tiny_wav2vec2)):  # type: ignore[misc]
        def embed(self, inputs: torch.Tensor, *rest: Any) -> torch.Tensor:
            lengths.append(inputs.shape[-1])
            return super().embed(inputs, *rest)

    backbone = Measured.__new__(Measured)
    vars(backbone).update(vars(tiny_wav2vec2))
    window = {"sampling_rate": 16000, "window_frames": 700}
    smoke_test(backbone, 30)(*candidate(tiny_wav2vec2, input=window))
    assert lengths == [700 * 160] * 2


def test_a_row_that_cannot_fit_is_refused_by_arithmetic(tiny_ast: Backbone) -> None:
    rows: list[int] = []
    window = {"sampling_rate": 16000, "window_frames": 30_000, "mean": 0.0, "std": 1.0}
    started = time.thread_time()
    with pytest.raises(
        InvalidBundle, match=r"input.window_frames: a window of 30000 frames is 23,994 tokens .* 8,833 MiB"
    ):
        smoke_test(faulty(tiny_ast, rows.append), 30)(*candidate(tiny_ast, input=window))
    assert not rows
    assert time.thread_time() - started < 1.0


def test_one_that_hangs_costs_its_upload_its_time_and_the_next_ones_none(tiny_ast: Backbone, hang: Hang) -> None:
    smoke, fine = smoke_test(faulty(tiny_ast, hang), SECONDS), candidate(tiny_ast)
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"was not done within 1 s"):
        smoke(*fine)
    assert time.monotonic() - begun >= SECONDS
    assert hang.begun.is_set()
    for _ in range(20):  # together twenty seconds, if each waited its time
        with pytest.raises(NotReady, match="hangs"):
            smoke(*fine)
    assert time.monotonic() - begun < 10 * SECONDS


def test_one_that_comes_back_lets_others_in(tiny_ast: Backbone, hang: Hang) -> None:
    backbone = faulty(tiny_ast, hang)
    smoke, fine = smoke_test(backbone, SECONDS), candidate(tiny_ast)
    with pytest.raises(DeadlineExceeded):
        smoke(*fine)
    hang.released.set()
    until_let_in(smoke, fine)


def test_the_wait_for_a_turn_counts(tiny_ast: Backbone, hang: Hang) -> None:
    """Who waited behind another is not run once nobody waits for it."""
    rows: list[int] = []

    def fault(count: int) -> None:
        rows.append(count)
        hang(count)

    smoke, fine = smoke_test(faulty(tiny_ast, fault), 3 * SECONDS), candidate(tiny_ast)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(smoke, *fine)
        assert hang.begun.wait(10)
        with pytest.raises(DeadlineExceeded):
            smoke(*fine)
        with pytest.raises(DeadlineExceeded):
            first.result(10)
    hang.released.set()
    until_let_in(smoke, fine)
    assert rows == [1, 1, 1, 1]  # the first and the last
