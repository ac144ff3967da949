"""The first inference of an adapter: what it lets in, what it refuses, and for how long anyone waits for it."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch

from service.engine.smoke import SmokeTest
from service.errors import DeadlineExceeded, InvalidBundle, NotReady
from service.model.adapter import AdapterWeights, random_adapter
from service.model.backbone import Backbone
from service.model.spec import TaskType
from service.registry.manifest import Manifest, build_manifest
from tests.bundles import config_of
from tests.engine.faults import Hang, Memory, faulty

SECONDS = 0.5  # a first inference of the tiny backbone takes milliseconds
Candidate = tuple[Manifest, AdapterWeights]


def candidate(backbone: Backbone, **fields: Any) -> Candidate:
    """An adapter with weights that are fine."""
    manifest = build_manifest(config_of(backbone.spec, "candidate", **fields))
    return manifest, random_adapter(manifest.adapter_spec(), backbone.spec)


@pytest.fixture
def hang() -> Iterator[Hang]:
    hang = Hang()
    yield hang
    hang.released.set()  # the interpreter waits for threads of pools when it ends


def until_let_in(smoke: SmokeTest, fine: Candidate) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            return smoke(*fine)
        except (NotReady, DeadlineExceeded):
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize("task", [TaskType.CLASSIFICATION, TaskType.VERIFICATION])
@pytest.mark.parametrize("name", ["tiny_ast", "tiny_wav2vec2"])
def test_finite_outputs_pass(name: str, task: TaskType, request: pytest.FixtureRequest) -> None:
    backbone: Backbone = request.getfixturevalue(name)
    rows: list[int] = []
    SmokeTest(faulty(backbone, rows.append), 30)(*candidate(backbone, task=task))
    assert rows == [2]  # noise and silence


@pytest.mark.parametrize("part", ["prompt", "adapter.up.weight"])
def test_outputs_that_are_not_finite_are_refused(part: str, tiny_ast: Backbone) -> None:
    manifest, weights = candidate(tiny_ast)
    tensors = {  # finite, as the format asks
        name: torch.full_like(tensor, 3e38) if name.endswith(part) else tensor
        for name, tensor in weights.tensors.items()
    }
    with pytest.raises(InvalidBundle, match="not finite in float32; its weights or its scales are too large"):
        SmokeTest(tiny_ast, 30)(manifest, replace(weights, tensors=tensors))


def test_what_the_backbone_cannot_run_is_refused(tiny_ast: Backbone) -> None:
    def fault(_: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(InvalidBundle, match="the backbone cannot run the adapter: mat1 and mat2"):
        SmokeTest(faulty(tiny_ast, fault), 30)(*candidate(tiny_ast))


def test_a_full_device_is_no_fault_of_the_adapter(tiny_ast: Backbone) -> None:
    with pytest.raises(NotReady, match="no memory left"):
        SmokeTest(faulty(tiny_ast, Memory(rows=0)), 30)(*candidate(tiny_ast))


def test_one_that_hangs_costs_its_upload_its_time_and_the_next_ones_none(tiny_ast: Backbone, hang: Hang) -> None:
    smoke, fine = SmokeTest(faulty(tiny_ast, hang), SECONDS), candidate(tiny_ast)
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"was not done within 0\.5 s"):
        smoke(*fine)
    assert time.monotonic() - begun >= SECONDS
    assert hang.begun.is_set()
    for _ in range(20):  # together ten seconds, if each waited its time
        with pytest.raises(NotReady, match="hangs"):
            smoke(*fine)
    assert time.monotonic() - begun < 10 * SECONDS


def test_one_that_comes_back_lets_others_in(tiny_ast: Backbone, hang: Hang) -> None:
    backbone = faulty(tiny_ast, hang)
    smoke, fine = SmokeTest(backbone, SECONDS), candidate(tiny_ast)
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

    smoke, fine = SmokeTest(faulty(tiny_ast, fault), 3 * SECONDS), candidate(tiny_ast)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(smoke, *fine)
        assert hang.begun.wait(10)
        with pytest.raises(DeadlineExceeded):
            smoke(*fine)
        with pytest.raises(DeadlineExceeded):
            first.result(10)
    hang.released.set()
    until_let_in(smoke, fine)
    assert rows == [2, 2]  # the first and the last
