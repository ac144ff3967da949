"""Convolutions inside bottlenecks: where training starts, and that frames stay in their row and band."""

import torch

from service.model.adapter import TrainableAdapter
from service.model.backbone import Backbone
from service.model.bank import Bank
from service.model.parts.bottleneck import convolve
from tests.backbones import adapter_spec
from tests.model.reference import relative_error


def test_an_impulse_reaches_its_neighbours_only() -> None:
    x = torch.zeros(2, 2 + 3 * 5, 4)  # two special tokens, three bands of five frames
    x[0, 2 + 5 + 4] = 1.0  # the last frame of the second band
    x[0, 1] = 7.0
    weight = torch.randn((2, 4, 3), generator=torch.Generator().manual_seed(1))
    out = convolve(x, weight, torch.zeros(2, 1, 4), special=2, bands=3)
    assert out[0].any(dim=1).nonzero().flatten().tolist() == [1, 2 + 5 + 3, 2 + 5 + 4]
    assert torch.equal(out[0, :2], x[0, :2])
    assert not out[1].any()


def test_training_starts_at_the_plain_bottleneck(tiny_ast: Backbone, tiny_wav2vec2: Backbone) -> None:
    for backbone in (tiny_ast, tiny_wav2vec2):
        torch.manual_seed(0)
        convolved = TrainableAdapter(adapter_spec(4, 8, conv_kernel=7), backbone.spec)
        plain = TrainableAdapter(adapter_spec(4, 8), backbone.spec)
        parameters = dict(convolved.named_parameters())
        with torch.no_grad():
            for name, parameter in plain.named_parameters():
                if "up__weight" in name:
                    parameters[name].normal_()
                parameter.copy_(parameters[name])
            inputs = torch.randn((1, *backbone.input_shape(64)))
            answers = [
                backbone.forward(inputs, Bank.of(backbone, [each.weights()]), [1]) for each in (convolved, plain)
            ]
        assert relative_error(*answers) < 1e-6
