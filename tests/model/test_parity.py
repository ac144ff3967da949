"""The crown tests: folded prompts equal prepended ones, a mixed batch equals each row alone, gradients stay inside."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from service.model.adapter import AdapterSpec, AdapterWeights, TrainableAdapter
from service.model.backbone import Backbone
from service.model.bank import Bank
from service.model.folding import fold
from service.model.loading import load_backbone
from service.model.parts.bottleneck import Bottleneck
from service.model.spec import ModelType, TaskType
from tests.backbones import adapter_spec, random_adapter, save_tiny_wav2vec2
from tests.model import parity
from tests.model.reference import Reference, head, relative_error

ARCHITECTURES = ("ast", "wav2vec2", "wav2vec2-layer-norm")

# Prompt lengths and bottlenecks that differ, are zero, or are as large as the tokens are few.
MIXED = [
    adapter_spec(4, 8),
    adapter_spec(7, 3, residual=True),
    adapter_spec(0, 8, residual=True, scale=0.1),
    adapter_spec(5, 0, residual=True),
    adapter_spec(0, 0, outputs=2),
    adapter_spec(40, 16, task=TaskType.VERIFICATION, outputs=12),
    adapter_spec(4, 8, conv_kernel=5),
    adapter_spec(0, 11, conv_kernel=9, residual=True, layer_aggregation=True),
    adapter_spec(3, 0, task=TaskType.VERIFICATION, outputs=6, layer_aggregation=True),
    adapter_spec(0, 0, layer_aggregation=True),
]
WHOLE = {"conv_kernel": 3, "layer_aggregation": True}
FRAMES = 96  # of the windows of a mixed batch


def mixed_specs(backbone: Backbone, frames: int = FRAMES) -> list[AdapterSpec]:
    """`MIXED`, and for AST two with input prompts, one of them with everything else too."""
    if backbone.spec.model_type is ModelType.WAV2VEC2:
        return MIXED
    everything = adapter_spec(2, 5, **WHOLE, input_prompt=20, frames=frames)
    return [*MIXED, adapter_spec(0, 0, input_prompt=3, frames=frames), everything]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "wav2vec2-layer-norm":
        return save_tiny_wav2vec2(tmp_path_factory.mktemp("layer-norm"), norm="layer")
    fixture: Path = request.getfixturevalue(f"tiny_{request.param}_dir")
    return fixture


@pytest.fixture(scope="module")
def backbone(directory: Path) -> Backbone:
    return load_backbone(str(directory), "cpu", "float32")


def inputs_of(backbone: Backbone, rows: int, frames: int = FRAMES, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((rows, *backbone.input_shape(frames)), generator=generator)


def adapters_of(backbone: Backbone) -> list[AdapterWeights]:
    return [random_adapter(spec, backbone.spec, seed, std=0.2) for seed, spec in enumerate(mixed_specs(backbone))]


def scale_and_residual(spec: AdapterSpec) -> tuple[float, bool]:
    part = spec.find(Bottleneck)
    return (part.adapter_scale, part.adapter_residual) if part else (0.0, False)


def unread_tensors(backbone: Backbone) -> set[str]:
    """AST's heads read the special tokens only, which the last layer's convolution passes by."""
    last = f"layers.{backbone.spec.num_hidden_layers - 1}.adapter.conv"
    return {f"{last}.weight", f"{last}.bias"} if backbone.spec.model_type is ModelType.AST else set()


def test_null_adapter_is_the_hugging_face_model(directory: Path, backbone: Backbone) -> None:
    model = AutoModel.from_pretrained(directory, attn_implementation="eager").eval()
    inputs = inputs_of(backbone, 2, frames=128)
    with torch.no_grad():
        hidden = model(inputs).last_hidden_state
    is_ast = backbone.spec.embedding_size == backbone.spec.hidden_size
    expected = hidden[:, :2].mean(dim=1) if is_ast else torch.cat((hidden.mean(1), hidden.std(1)), dim=1)
    assert relative_error(backbone.forward(inputs, Bank.of(backbone, []), [0, 0]), expected) < 1e-5


@pytest.mark.parametrize(
    "spec", MIXED, ids=lambda spec: "".join(f"{name[0]}{size}" for name, size in spec.sizes.items())
)
@pytest.mark.parametrize("frames", [64, 96, 200])
def test_folded_equals_prepended(directory: Path, backbone: Backbone, spec: AdapterSpec, frames: int) -> None:
    weights = random_adapter(spec, backbone.spec, seed=11, std=0.2)
    inputs = inputs_of(backbone, 2, frames)
    embeddings = backbone.forward(inputs, Bank.of(backbone, [weights]), [1, 1])
    tensors = weights.to_tensors()
    expected = Reference(directory).embeddings(inputs, tensors, *scale_and_residual(spec))
    assert relative_error(embeddings, expected) < 1e-5
    assert relative_error(backbone.answer(inputs, Bank.of(backbone, [weights]), [1, 1]), head(tensors, expected)) < 1e-4


def test_mixed_batch_equals_each_row_alone(backbone: Backbone) -> None:
    adapters = adapters_of(backbone)
    bank = Bank(backbone, slots=14)
    for slot, weights in enumerate(adapters, start=1):
        bank.write(slot, fold(weights, backbone))
    slots = [3, 0, 1, 6, 2, 2, 5, 4, 0, 6, *range(len(adapters), -1, -1), *range(7, len(adapters) + 1)]
    inputs = inputs_of(backbone, len(slots))
    mixed = backbone.forward(inputs, bank, slots)
    for row, slot in enumerate(slots):
        alone = backbone.forward(inputs[row : row + 1], Bank.of(backbone, adapters[slot - 1 : slot]), [min(slot, 1)])
        assert relative_error(mixed[row : row + 1], alone) < 1e-5, f"row {row}, slot {slot}"


def test_rows_share_the_front_end(backbone: Backbone) -> None:
    adapters = adapters_of(backbone)
    bank = Bank.of(backbone, adapters)
    inputs = inputs_of(backbone, 2)
    every = list(range(len(adapters) + 1))
    slots, rows = [1, 2, 3, 1, *every, *every], [0, 0, 1, 1, *(0 for _ in every), *(1 for _ in every)]
    shared = backbone.forward(inputs, bank, slots, rows)
    apart = backbone.forward(inputs[rows], bank, slots)
    assert relative_error(shared, apart) < 1e-5


def test_gradients_reach_prompt_and_adapter_and_nothing_else(backbone: Backbone) -> None:
    spec = mixed_specs(backbone)[-1] if backbone.spec.model_type is ModelType.AST else adapter_spec(4, 8, **WHOLE)
    adapter = TrainableAdapter(spec, backbone.spec)
    inputs = inputs_of(backbone, 2)
    with torch.no_grad():  # up-projections start at zero, which would leave the down-projections without gradient
        for name, parameter in adapter.named_parameters():
            if "up__weight" in name:
                parameter.normal_(std=0.1)
    weights = adapter.weights()
    logits = backbone.answer(inputs, Bank.of(backbone, [weights]), [1, 1])
    logits.square().sum().backward()
    still = {
        name.replace("__", ".")
        for name, parameter in adapter.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    }
    assert still == unread_tensors(backbone)
    frozen = [value for value in vars(backbone).values() if isinstance(value, Tensor)]
    assert not any(tensor.requires_grad for tensor in frozen)
    assert not any(layer.attention.qkv.weight.requires_grad for layer in backbone._layers)  # type: ignore[attr-defined]


def test_gradients_equal_those_of_the_prepended_form(directory: Path, backbone: Backbone) -> None:
    spec = adapter_spec(4, 8, residual=True, **WHOLE)
    tensors = random_adapter(spec, backbone.spec, seed=5, std=0.2).to_tensors()
    inputs = inputs_of(backbone, 2)
    leaves = [{name: tensor.clone().requires_grad_() for name, tensor in tensors.items()} for _ in range(2)]
    weights = AdapterWeights.from_tensors(spec, leaves[0])
    backbone.forward(inputs, Bank.of(backbone, [weights]), [1, 1]).square().sum().backward()
    reference = Reference(directory).embeddings(inputs, leaves[1], *scale_and_residual(spec))
    reference.square().sum().backward()
    for name in tensors:
        if not name.startswith("head.") or name == "head.layers.weight":
            ours, theirs = leaves[0][name].grad, leaves[1][name].grad
            assert ours is not None
            assert theirs is not None
            if name in unread_tensors(backbone):
                assert not ours.any()
                assert not theirs.any()
            else:
                assert relative_error(ours, theirs) < 1e-4, name


@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_half_precision_stays_near(directory: Path, backbone: Backbone, dtype: str) -> None:
    half = load_backbone(str(directory), "cpu", dtype)
    adapters = adapters_of(backbone)
    slots = [1, 2, 0, 6, 4, 3, *range(7, len(adapters) + 1)]
    inputs = inputs_of(backbone, len(slots))
    bank = Bank.of(half, adapters)
    mixed = half.forward(inputs, bank, slots)
    alone = torch.cat([half.forward(inputs[i : i + 1], bank, [slot]) for i, slot in enumerate(slots)])
    exact = backbone.forward(inputs, Bank.of(backbone, adapters), slots)
    assert relative_error(mixed, alone) < 1e-2
    assert relative_error(mixed, exact) < 3e-2


def test_the_table_in_the_docs_is_whole() -> None:
    _, _, text = (Path(__file__).parents[2] / "docs" / "ADAPTERS.md").read_text().partition("## How exact")
    assert f"\n| | {' | '.join(parity.BACKBONES)} |\n" in text
    for row in (parity.BARE, *parity.FAMILIES, parity.MIXED, *parity.SAVED):
        (errors,) = [line.split("|")[2:-1] for line in text.splitlines() if line.startswith(f"| {row} |")]
        assert all(cell.strip() == "-" or float(cell) < 1e-5 for cell in errors)
        assert len(errors) == len(parity.BACKBONES)
