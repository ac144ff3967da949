"""Slots: what is written is what answers, whatever was there before."""

import pytest
import torch

from service.model.adapter import random_adapter
from service.model.backbone import Backbone
from service.model.bank import Bank
from service.model.folding import fold
from tests.backbones import adapter_spec
from tests.model.reference import relative_error


def answer(backbone: Backbone, bank: Bank, slot: int) -> torch.Tensor:
    inputs = torch.randn((1, *backbone.input_shape(64)), generator=torch.Generator().manual_seed(0))
    return backbone.forward(inputs, bank, [slot])


def test_a_slot_forgets_what_it_held(tiny_ast: Backbone) -> None:
    bank = Bank(tiny_ast, slots=2, prompt_length=16, bottleneck_dim=16)
    bare = answer(tiny_ast, bank, 0)
    large = random_adapter(adapter_spec(16, 16, residual=True), tiny_ast.spec, 1, std=0.2)
    small = random_adapter(adapter_spec(3, 5), tiny_ast.spec, 2, std=0.2)
    bank.write(1, fold(large, tiny_ast))
    bank.write(1, fold(small, tiny_ast))
    assert relative_error(answer(tiny_ast, bank, 1), answer(tiny_ast, Bank.of(tiny_ast, [small]), 1)) < 1e-6
    bank.write(1, fold(large, tiny_ast))
    bank.clear(1)
    assert torch.equal(answer(tiny_ast, bank, 1), bare)
    with pytest.raises(KeyError):
        bank.head(1)


def test_writing_one_slot_leaves_the_others(tiny_wav2vec2: Backbone) -> None:
    bank = Bank(tiny_wav2vec2, slots=3, prompt_length=16, bottleneck_dim=16)
    adapters = [random_adapter(adapter_spec(i + 2, 4 * i), tiny_wav2vec2.spec, i, std=0.2) for i in range(3)]
    bank.write(1, fold(adapters[0], tiny_wav2vec2))
    bank.write(2, fold(adapters[1], tiny_wav2vec2))
    before = answer(tiny_wav2vec2, bank, 1)
    bank.write(3, fold(adapters[2], tiny_wav2vec2))
    bank.clear(2)
    assert torch.equal(answer(tiny_wav2vec2, bank, 1), before)


@pytest.mark.parametrize(("slot", "prompt", "bottleneck"), [(0, 4, 4), (3, 4, 4), (1, 17, 4), (1, 4, 17)])
def test_what_does_not_fit_is_refused(tiny_ast: Backbone, slot: int, prompt: int, bottleneck: int) -> None:
    bank = Bank(tiny_ast, slots=2, prompt_length=16, bottleneck_dim=16)
    folded = fold(random_adapter(adapter_spec(prompt, bottleneck), tiny_ast.spec), tiny_ast)
    with pytest.raises(ValueError, match="slot"):
        bank.write(slot, folded)


def test_a_convolution_that_does_not_fit_is_refused_and_a_cleared_one_forgotten(tiny_wav2vec2: Backbone) -> None:
    bank = Bank(tiny_wav2vec2, slots=1, prompt_length=4, bottleneck_dim=8, conv_kernel=6)  # odd ones of up to 5
    folded = [
        fold(random_adapter(adapter_spec(conv_kernel=kernel), tiny_wav2vec2.spec, std=0.2), tiny_wav2vec2)
        for kernel in (5, 7)
    ]
    bare = answer(tiny_wav2vec2, bank, 0)
    bank.write(1, folded[0])
    assert relative_error(answer(tiny_wav2vec2, bank, 1), bare) > 1e-3
    with pytest.raises(ValueError, match="conv_kernel 7 do not fit a slot of 4, 8, 6"):
        bank.write(1, folded[1])
    bank.clear(1)
    assert torch.equal(answer(tiny_wav2vec2, bank, 1), bare)
