"""Parts of other families: each equals its formula written out, in a batch of all families and alone, and learns."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from service.model.adapter import AdapterSpec, AdapterWeights, TrainableAdapter
from service.model.backbone import Backbone
from service.model.bank import Bank
from service.model.folding import fold
from service.model.loading import load_backbone
from service.model.spec import TARGETS
from tests.backbones import KIN, adapter_spec, random_adapter, save_tiny_kin
from tests.model.reference import Reference, relative_error

Fields = dict[str, Any]
LORA: Fields = {"r": 4, "alpha": 8.0, "targets": ["q", "v"]}
EVERYWHERE: Fields = {**LORA, "targets": list(TARGETS)}
PATTERNS: Fields = {
    **EVERYWHERE,
    "rank_pattern": {"q": 6, "1.q": 2, "fc1": 1},
    "alpha_pattern": {"2.v": 3.0, "fc2": 1.5},
    "rslora": True,
}
PARTS: dict[str, Fields] = {
    "lora": {"lora": LORA},
    "lora-everywhere": {"lora": EVERYWHERE},
    "lora-patterns": {"lora": PATTERNS},
    "dora": {"lora": {**EVERYWHERE, "dora": True}},
    "ia3": {"ia3": {"output": ["k", "v"], "input": ["fc2"]}},
    "ia3-everywhere": {"ia3": {"output": ["v", "o", "fc1"], "input": ["q", "k", "fc2"]}},
    "bitfit": {"bias": list(TARGETS)},
    "prefix": {"prefix_length": 5},
    "gelu": {"bottleneck_dim": 6, "adapter_activation": "gelu"},
    "silu-sequential": {"bottleneck_dim": 6, "adapter_activation": "silu", "adapter_place": "sequential"},
    "norm": {"bottleneck_dim": 6, "adapter_norm": True, "adapter_residual": True},
    "prompt-lora": {"prompt_length": 3, "lora": LORA},
    "prompt-all": {
        "prompt_length": 3,
        "prefix_length": 2,
        "bottleneck_dim": 5,
        "adapter_norm": True,
        "lora": {**PATTERNS, "dora": True},
        "bias": ["k", "v", "fc1"],
        "ia3": {"output": ["k"], "input": ["v", "o"]},
        "layer_aggregation": True,
    },
}


def spec_with(fields: Fields) -> AdapterSpec:
    return adapter_spec(**{"prompt_length": 0, "bottleneck_dim": 0, **fields})


@pytest.fixture(scope="module", params=["ast", "wav2vec2", "wav2vec2-stable", "data2vec-audio", "wavlm"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param in KIN:
        return save_tiny_kin(tmp_path_factory.mktemp(request.param), request.param)
    found: Path = request.getfixturevalue(f"tiny_{request.param}_dir")
    return found


@pytest.fixture(scope="module")
def backbone(directory: Path) -> Backbone:
    return load_backbone(str(directory), "cpu", "float32")


def inputs_of(backbone: Backbone, rows: int, frames: int = 80) -> Tensor:
    return torch.randn((rows, *backbone.input_shape(frames)), generator=torch.Generator().manual_seed(3))


def reference(directory: Path, inputs: Tensor, tensors: dict[str, Tensor], fields: Fields) -> Tensor:
    residual = fields.get("adapter_residual", False)
    return Reference(directory).embeddings(inputs, tensors, 0.5, residual, fields)


@pytest.mark.parametrize("name", PARTS)
def test_each_part_equals_its_formula(name: str, directory: Path, backbone: Backbone) -> None:
    weights = random_adapter(spec_with(PARTS[name]), backbone.spec, seed=2, std=0.2)
    inputs = inputs_of(backbone, 2)
    embeddings = backbone.forward(inputs, Bank.of(backbone, [weights]), [1, 1])
    expected = reference(directory, inputs, weights.to_tensors(), PARTS[name])
    assert relative_error(embeddings, expected) < 1e-5
    bare = backbone.forward(inputs, Bank.of(backbone, []), [0, 0])
    assert relative_error(embeddings, bare) > 1e-3


@pytest.mark.parametrize("kernels", ["plain", "float32", "bfloat16", "int8"])
def test_a_batch_of_all_families_equals_each_alone(kernels: str, directory: Path, backbone: Backbone) -> None:
    dtype, weights = (
        ("float32", "int8") if kernels == "int8" else ("float32" if kernels == "plain" else kernels, "auto")
    )
    served = (
        backbone
        if kernels == "plain"
        else load_backbone(
            str(directory),
            "cpu",
            dtype,
            for_inference=True,
            weights=weights,  # type: ignore[arg-type]
        )
    )
    adapters = [random_adapter(spec_with(fields), served.spec, i, std=0.1) for i, fields in enumerate(PARTS.values())]
    bank = Bank(served, len(adapters))
    for slot, adapter in enumerate(adapters, start=1):
        bank.write(slot, fold(adapter, served))
    slots = [*range(len(adapters) + 1), 1, 1, 4, *range(len(adapters), 0, -1)]
    inputs = inputs_of(served, len(slots))
    with torch.inference_mode():
        mixed = served.answer(inputs, bank, slots)
        alone = torch.cat(
            [
                served.answer(inputs[i : i + 1], bank, [slot]).new_zeros(1, 5)
                if not slot
                else served.answer(inputs[i : i + 1], bank, [slot])
                for i, slot in enumerate(slots)
            ]
        )
    limits = {"plain": 1e-5, "float32": 1e-5, "bfloat16": 1e-2, "int8": 2e-2}
    assert relative_error(mixed, alone) < limits[kernels]


@pytest.mark.parametrize("name", [*PARTS])
def test_gradients_equal_those_of_the_formula(name: str, directory: Path, backbone: Backbone) -> None:
    spec = spec_with(PARTS[name])
    tensors = random_adapter(spec, backbone.spec, seed=5, std=0.2).to_tensors()
    inputs = inputs_of(backbone, 2)
    leaves = [{name: tensor.clone().requires_grad_() for name, tensor in tensors.items()} for _ in range(2)]
    weights = AdapterWeights.from_tensors(spec, leaves[0])
    backbone.forward(inputs, Bank.of(backbone, [weights]), [1, 1]).square().sum().backward()
    reference(directory, inputs, leaves[1], PARTS[name]).square().sum().backward()
    for key in tensors:
        if key.startswith("layers."):
            ours, theirs = leaves[0][key].grad, leaves[1][key].grad
            assert ours is not None
            assert theirs is not None
            assert relative_error(ours, theirs) < 1e-3 or (ours - theirs).abs().max() < 1e-4, key


@pytest.mark.parametrize("name", PARTS)
def test_training_starts_at_the_backbones_own_answers(name: str, backbone: Backbone) -> None:
    torch.manual_seed(0)
    fields = {key: value for key, value in PARTS[name].items() if key not in ("prompt_length", "prefix_length")}
    if fields.get("adapter_residual") or "layer_aggregation" in fields or not fields:
        pytest.skip("what starts elsewhere")
    adapter = TrainableAdapter(spec_with(fields), backbone.spec)
    adapter.start(backbone)
    inputs = inputs_of(backbone, 1)
    with torch.no_grad():
        answer = backbone.forward(inputs, Bank.of(backbone, [adapter.weights()]), [1])
        assert relative_error(answer, backbone.forward(inputs, Bank.of(backbone, []), [0])) < 1e-5


def test_optional_tensors_may_be_of_some_layers_and_targets(directory: Path, backbone: Backbone) -> None:
    fields: Fields = {"lora": {"r": 4, "alpha": 8.0, "dora": True}, "prompt_length": 2}
    spec = spec_with(fields)
    names = ["layers.1.lora.q.a", "layers.2.lora.fc2.b", "layers.0.bias.v", "layers.2.bias.k"]
    weights = random_adapter(spec, backbone.spec, 1, 0.2, names)
    assert {"layers.1.lora.q.b", "layers.2.lora.fc2.magnitude"} < weights.tensors.keys()
    assert "layers.0.lora.q.a" not in weights.tensors
    assert spec.shapes(backbone.spec, weights.tensors).keys() == weights.tensors.keys()
    inputs = inputs_of(backbone, 2)
    embeddings = backbone.forward(inputs, Bank.of(backbone, [weights]), [1, 1])
    assert relative_error(embeddings, reference(directory, inputs, weights.to_tensors(), fields)) < 1e-5


def test_a_slot_costs_its_own_parts_only(backbone: Backbone) -> None:
    bank = Bank(backbone, 64)
    lora = fold(random_adapter(spec_with(PARTS["lora"]), backbone.spec), backbone)
    bank.write(1, lora)
    assert bank.nbytes <= 3 * lora.nbytes  # the null adapter's zeros, and room for one more
    width, layers = backbone.spec.hidden_size, backbone.spec.num_hidden_layers
    head = sum(t.nbytes for held in lora.holdings if held.place == "head" for t in held.tensors.values())
    assert lora.nbytes == head + layers * 2 * 2 * 4 * width * 4
