"""What a batch and a load ask of a CUDA device, counted without one: copies and kernels, whatever its adapters."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from service.engine.cost import Costs
from service.engine.job import Job, Rows
from service.engine.runner import Runner
from service.engine.smoke import SmokeTest
from service.model.adapter import AdapterSpec
from service.model.backbone import Backbone
from service.model.bank import Bank
from service.model.folding import fold
from service.model.parts.low_rank import LowRank
from service.model.parts.prompt import Prompt
from service.model.spec import ModelType, TaskType
from tests.backbones import adapter_spec, random_adapter
from tests.model.fake_cuda import Counts, counting, on_fake_cuda

FRAMES = 96
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


_CHANGES = {
    "prefix_length": 3,
    "lora": {"r": 6, "alpha": 8.0, "targets": ["k", "o", "fc1"]},
    "ia3": {"output": ["v"], "input": ["fc2"]},
    "bias": ["q", "fc2"],
}


def every_part(backbone: Backbone) -> list[AdapterSpec]:
    """Adapters that have one part, one of each head, and one with all."""
    is_ast = backbone.spec.model_type is ModelType.AST
    framed = {"input_prompt": 5, "frames": FRAMES} if is_ast else {}
    return [
        adapter_spec(0, 0, prefix_length=3),
        adapter_spec(0, 0, ia3={"output": ["v"], "input": ["fc2"]}),
        adapter_spec(0, 0, bias=["q", "fc2"]),
        adapter_spec(
            0, 0, head="ast" if is_ast else "pooled-projector", backbone={"model_type": backbone.spec.model_type}
        ),
        adapter_spec(0, 0, task=TaskType.FEATURES),
        adapter_spec(4, 8),
        adapter_spec(7, 0, outputs=40),
        adapter_spec(0, 16, residual=True),
        adapter_spec(0, 8, conv_kernel=5),
        adapter_spec(0, 0, layer_aggregation=True, task=TaskType.VERIFICATION, outputs=12),
        adapter_spec(0, 0, lora={"r": 4, "alpha": 8.0, "targets": ["q", "v"]}),
        adapter_spec(0, 0, lora={"r": 4, "alpha": 8.0, "dora": True, "targets": ["q", "fc1"]}),
        adapter_spec(0, 8, adapter_norm=True, adapter_place="sequential", adapter_activation="gelu"),
        adapter_spec(40, 30, residual=True, conv_kernel=3, layer_aggregation=True, **framed, **_CHANGES),
    ]


def filled(backbone: Backbone, specs: Sequence[AdapterSpec]) -> Bank:
    bank = Bank(backbone, len(specs))
    for slot, spec in enumerate(specs, start=1):
        bank.write(slot, fold(random_adapter(spec, backbone.spec, slot), backbone))
    return bank


@pytest.fixture(params=["tiny_ast_dir", "tiny_wav2vec2_dir"])
def directory(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def test_kernels_do_not_grow_with_the_number_of_adapters(directory: Path) -> None:
    kernels = {}
    for adapters in (2, 16):
        with on_fake_cuda(directory, torch.bfloat16) as backbone:
            bank = filled(backbone, [adapter_spec(4, 8, outputs=3 + i % 2) for i in range(adapters)])
            windows = torch.zeros((16, *backbone.input_shape(FRAMES)))
            with counting() as counts:
                backbone.answer(windows, bank, [1 + row % adapters for row in range(16)]).cpu()
            kernels[adapters] = counts.kernels
    assert kernels[2] == kernels[16] < 60 * backbone.spec.num_hidden_layers


def test_prompts_of_one_length_need_no_mask(directory: Path) -> None:
    with on_fake_cuda(directory, torch.bfloat16) as backbone:
        bank = filled(backbone, [adapter_spec(4, 8), adapter_spec(4, 8), adapter_spec(3, 8)])
        windows = torch.zeros((2, *backbone.input_shape(FRAMES)))
        with counting() as equal:
            backbone.answer(windows, bank, [1, 2])
        with counting() as unequal:
            backbone.answer(windows, bank, [1, 3])
        assert 0 < unequal.kernels - equal.kernels < backbone.spec.num_hidden_layers + 8  # made once, not in each layer


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_load_is_one_copy_and_folds_on_the_host(directory: Path, dtype: torch.dtype) -> None:
    with on_fake_cuda(directory, dtype) as backbone:
        for spec in every_part(backbone):
            weights, bank = random_adapter(spec, backbone.spec), Bank(backbone, 1)
            with counting() as counts:
                folded = fold(weights, backbone)
                there = counts.to_device
                bank.write(1, folded)
            assert {t.device.type for held in folded.holdings for t in held.tensors.values()} == {"cpu"}
            assert counts.to_device == there + 1
            prompt, changed = spec.find(Prompt), spec.find(LowRank)
            if prompt is None:  # which alone needs the device's weights, and comes back as keys and values
                assert (there, counts.to_host, counts.pageable) == (0, 0, 0)
            else:
                assert counts.to_host == 2
                assert there == 1 or (changed is not None and there <= 1 + 2 * 5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_batch_is_two_copies_there_from_memory_that_nothing_waits_for_and_one_back(
    directory: Path, dtype: torch.dtype
) -> None:
    with on_fake_cuda(directory, dtype) as backbone:
        specs = every_part(backbone)
        runner = Runner(backbone, filled(backbone, specs))
        clips = [np.zeros((2, *backbone.input_shape(FRAMES)), np.float32) for _ in range(3)]
        parts = [Rows(job_of(clips[i % 3]), 1 + i % len(specs), 0, 2) for i in range(2 * len(specs))]
        with counting() as counts:
            answers = runner.run(parts)
        outputs = [spec.outputs or backbone.spec.embedding_size for spec in specs]  # of one without a head, the latter
        assert [answer.shape for answer in answers] == [(2, outputs[part.slot - 1]) for part in parts]
        assert counts == Counts(to_device=2, pageable=0, to_host=1, kernels=counts.kernels)
        with counting() as counts:
            runner.warm_up()
        assert (counts.to_device, counts.to_host) == (1, 1)


def job_of(clip: NDArray[np.float32]) -> Job:
    """A job whose windows are all that counts."""
    version: Any = None
    return Job(version, ("adapter", 1), "adapter", clip, len(clip), clip.shape[1:], 1, 1, math.inf)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_first_inference_copies_as_often_whatever_the_adapter_holds(directory: Path, dtype: torch.dtype) -> None:
    with on_fake_cuda(directory, dtype) as backbone:
        smoke = SmokeTest(backbone, 1.0, Costs(backbone, 2**30), lambda: None)
        for spec in every_part(backbone)[-3:]:  # DoRA, a bottleneck of another kind, and all parts together
            weights = random_adapter(spec, backbone.spec)
            with counting() as folds:
                fold(weights, backbone)
            with counting() as counts:
                smoke._run(weights, FRAMES)
            assert counts.to_device == folds.to_device + 1 + 2 * (1 + 1)  # the load; noise and silence, with their rows
            assert counts.to_host == folds.to_host + 2
