from pathlib import Path

import pytest
import torch

from service.model.backbone import Backbone
from service.model.bank import Bank
from service.model.loading import load_backbone
from service.model.trainable import TrainableBackbone
from tests.backbones import save_tiny_wav2vec2

TINY = ("tiny_ast", "tiny_wav2vec2")


def inputs_of(backbone: Backbone) -> torch.Tensor:
    return torch.randn(2, *backbone.input_shape(64), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", TINY)
def test_forward_is_the_frozen_backbones(name: str, request: pytest.FixtureRequest) -> None:
    frozen: Backbone = request.getfixturevalue(name)
    inputs, bank = inputs_of(frozen), Bank(frozen, 0)
    trainable = TrainableBackbone(frozen).backbone()
    torch.testing.assert_close(trainable.forward(inputs, bank, [0, 0]), frozen.forward(inputs, bank, [0, 0]))


@pytest.mark.parametrize("name", TINY)
def test_gradients_reach_every_parameter_and_only_here(name: str, request: pytest.FixtureRequest) -> None:
    frozen: Backbone = request.getfixturevalue(name)
    trainable = TrainableBackbone(frozen)
    bank = Bank(frozen, 0)
    before = frozen.forward(inputs_of(frozen), bank, [0, 0])
    trainable.backbone().forward(inputs_of(frozen), bank, [0, 0]).square().sum().backward()
    without = [n for n, p in trainable.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A softmax does not see what all its entries have in common: the keys' biases.
    assert not [n for n in without if not n.endswith(("key__bias", "k_proj__bias"))]
    with torch.no_grad():
        for parameter in trainable.parameters():
            parameter.add_(0.1)
    torch.testing.assert_close(frozen.forward(inputs_of(frozen), bank, [0, 0]), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", TINY)
def test_a_saved_snapshot_is_a_backbone(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    frozen: Backbone = request.getfixturevalue(name)
    trainable = TrainableBackbone(frozen)
    with torch.no_grad():
        for parameter in trainable.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    snapshot = trainable.snapshot()
    trainable.save(snapshot, tmp_path / "backbone")
    assert (tmp_path / "backbone" / "model.safetensors").exists()
    loaded, expected = load_backbone(str(tmp_path / "backbone"), "cpu", "float32"), trainable.backbone(snapshot)
    assert loaded.spec.fingerprint == trainable.fingerprint(snapshot) != frozen.spec.fingerprint
    inputs, bank = inputs_of(frozen), Bank(frozen, 0)
    torch.testing.assert_close(
        loaded.forward(inputs, bank, [0, 0]), expected.forward(inputs, bank, [0, 0]), rtol=0, atol=0
    )


def test_front_end_with_layer_norms(tmp_path: Path) -> None:
    frozen = load_backbone(str(save_tiny_wav2vec2(tmp_path / "layer", norm="layer")), "cpu", "float32")
    trainable = TrainableBackbone(frozen)
    trainable.backbone().embed(inputs_of(frozen)).square().sum().backward()
    gradients = {n: p.grad for n, p in trainable.named_parameters() if n.startswith("feature_extractor")}
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients.values())
