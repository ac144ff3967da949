"""Convolutions inside bottlenecks: where training starts, and that frames stay in their row and band."""

import torch

from service.model.adapter import TrainableAdapter
from service.model.backbone import Backbone
from service.model.bank import Bank
from service.model.convolution import RowConvolution, TokenLayout
from service.model.rows import RowSubset
from tests.backbones import adapter_spec
from tests.model.reference import relative_error


def convolve(x: torch.Tensor, layout: TokenLayout, rows: RowSubset, kernels: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn((kernels, x.shape[2], 3), generator=generator)
    return RowConvolution(weight, torch.zeros(kernels, 1, x.shape[2]), rows, layout)(x)


def test_an_impulse_reaches_its_neighbours_only() -> None:
    x = torch.zeros(2, 2 + 3 * 5, 4)  # two special tokens, three bands of five frames
    x[0, 2 + 5 + 4] = 1.0  # the last frame of the second band
    x[0, 1] = 7.0
    out = convolve(x, TokenLayout(2, 3), RowSubset(None), 2)
    assert out[0].any(dim=1).nonzero().flatten().tolist() == [1, 2 + 5 + 3, 2 + 5 + 4]
    assert torch.equal(out[0, :2], x[0, :2])
    assert not out[1].any()


def test_other_rows_pass_as_they_are() -> None:
    x = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
    out = convolve(x, TokenLayout(), RowSubset.of([1], 3, torch.device("cpu")), 1)
    assert torch.equal(out[[0, 2]], x[[0, 2]])
    assert not torch.equal(out[1], x[1])
    assert torch.equal(out[1:2], convolve(x[1:2], TokenLayout(), RowSubset(None), 1))


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


def test_only_banks_that_may_convolve_pay_for_it(tiny_ast: Backbone) -> None:
    without, with_ = (Bank(tiny_ast, 4, 16, 16, conv_kernel=kernel).nbytes for kernel in (0, 31))
    layers, slots = tiny_ast.spec.num_hidden_layers, 4 + 1
    assert with_ - without == layers * slots * 16 * (31 + 1) * 4
