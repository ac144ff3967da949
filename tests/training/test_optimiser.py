"""The optimiser of pre-training: a part for matrices, rates, and moments that go on where they were."""

import torch
from torch import nn

from service.training.pretraining.optimiser import Optimiser


def _make(matrices: bool) -> tuple[nn.Linear, Optimiser]:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    own = [layer.weight] if matrices else []
    others = [layer.bias] if matrices else [layer.weight, layer.bias]
    return layer, Optimiser([{"params": others}], own, weight_decay=0.0, scale=5.0)


def _steps(layer: nn.Linear, optimiser: Optimiser, count: int) -> None:
    for step in range(count):
        optimiser.set_rate(0.01 / (step + 1))
        optimiser.zero_grad()
        layer(torch.ones(2, 4)).square().sum().backward()
        optimiser.step()


def test_a_matrix_moves_by_an_orthogonal_one_at_its_own_rate() -> None:
    layer, optimiser = _make(matrices=True)
    before, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    optimiser.set_rate(0.01)
    (layer.weight * torch.randn(3, 4)).sum().backward()
    layer.bias.grad = torch.ones(3)
    optimiser.step()
    moved = torch.linalg.svdvals(before - layer.weight.detach()) / (0.01 * 5.0)
    assert moved.min() > 0.5  # the iteration that orthogonalises ends near 1
    assert moved.max() < 1.5
    torch.testing.assert_close(bias - layer.bias.detach(), torch.full((3,), 0.01), atol=1e-6, rtol=0)


def test_moments_are_numbered_through_and_restored() -> None:
    for matrices in (True, False):
        layer, optimiser = _make(matrices)
        _steps(layer, optimiser, 3)
        other, resumed = _make(matrices)
        other.load_state_dict(layer.state_dict())
        resumed.restore({number: {k: v.clone() for k, v in own.items()} for number, own in optimiser.moments().items()})
        assert resumed.moments().keys() == {0, 1}
        _steps(layer, optimiser, 2)
        _steps(other, resumed, 2)
        assert torch.equal(layer.weight, other.weight)
        assert torch.equal(layer.bias, other.bias)
