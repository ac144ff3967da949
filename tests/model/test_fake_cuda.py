"""What a batch and a load ask of a CUDA device, counted without one: copies and kernels, whatever its adapters."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from service.model.adapter import random_adapter
from service.model.backbone import Backbone
from service.model.bank import Bank
from service.model.folding import fold
from service.model.spec import AdapterSpec, ModelType, TaskType
from tests.backbones import adapter_spec
from tests.model.fake_cuda import counting, on_fake_cuda

FRAMES = 96
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


_CHANGES = {
    "prefix_length": 3,
    "lora": {"r": 6, "alpha": 8.0, "targets": ["k", "o", "fc1"]},
    "ia3": {"output": ["v"], "input": ["fc2"]},
    "bias": ["q", "fc2"],
}


def every_part(backbone: Backbone) -> list[AdapterSpec]:
    """Adapters that have one part, and one with all."""
    framed = {"input_prompt": 5, "frames": FRAMES} if backbone.spec.model_type is ModelType.AST else {}
    return [
        adapter_spec(4, 8),
        adapter_spec(7, 0, outputs=40),
        adapter_spec(0, 16, residual=True),
        adapter_spec(0, 8, conv_kernel=5),
        adapter_spec(0, 0, layer_aggregation=True, task=TaskType.VERIFICATION, outputs=12),
        adapter_spec(0, 0, lora={"r": 4, "alpha": 8.0, "targets": ["q", "v"]}),
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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_batch_is_two_copies_there_and_one_back(directory: Path, dtype: torch.dtype) -> None:
    with on_fake_cuda(directory, dtype) as backbone:
        specs = every_part(backbone)
        bank = filled(backbone, specs)
        for slots in ([0], [*range(len(specs) + 1), 1]):
            windows = torch.zeros((len(slots), *backbone.input_shape(FRAMES)))
            with counting() as counts:
                answers = backbone.answer(windows, bank, slots, list(range(len(slots)))).cpu()
            assert answers.shape == (len(slots), max(map(bank.outputs, slots)))
            assert (counts.to_device, counts.to_host) == (1 + (slots != [0]), 1), slots


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
def test_a_load_from_the_host_is_one_copy(directory: Path, dtype: torch.dtype) -> None:
    with on_fake_cuda(directory, dtype) as backbone:
        for spec in every_part(backbone):
            folded = fold(random_adapter(spec, backbone.spec), backbone)
            assert {t.device.type for held in folded.holdings for t in held.tensors.values()} == {"cpu"}
            bank = Bank(backbone, 1)
            with counting() as counts:
                bank.write(1, folded)
            assert (counts.to_device, counts.to_host) == (1, 0)
