"""Slots: what is written is what answers, whatever was there before."""

import pytest
import torch

from service.model.backbone import Backbone
from service.model.bank import Bank
from service.model.folding import fold
from service.model.selection import RowAdapters
from tests.backbones import adapter_spec, random_adapter
from tests.model.reference import relative_error


def answer(backbone: Backbone, bank: Bank, slot: int) -> torch.Tensor:
    inputs = torch.randn((1, *backbone.input_shape(64)), generator=torch.Generator().manual_seed(0))
    return backbone.forward(inputs, bank, [slot])


def test_a_slot_forgets_what_it_held(tiny_ast: Backbone) -> None:
    bank = Bank(tiny_ast, slots=2)
    bare = answer(tiny_ast, bank, 0)
    large = random_adapter(adapter_spec(16, 16, residual=True), tiny_ast.spec, 1, std=0.2)
    small = random_adapter(adapter_spec(3, 5), tiny_ast.spec, 2, std=0.2)
    bank.write(1, fold(large, tiny_ast))
    bank.write(1, fold(small, tiny_ast))
    assert relative_error(answer(tiny_ast, bank, 1), answer(tiny_ast, Bank.of(tiny_ast, [small]), 1)) < 1e-6
    assert bank.outputs(1) == 5
    assert bank.outputs(2) == 0
    assert torch.equal(answer(tiny_ast, bank, 2), bare)


def test_writing_one_slot_leaves_the_others(tiny_wav2vec2: Backbone) -> None:
    bank = Bank(tiny_wav2vec2, slots=3)
    adapters = [random_adapter(adapter_spec(i + 2, 4 * i), tiny_wav2vec2.spec, i, std=0.2) for i in range(3)]
    bank.write(1, fold(adapters[0], tiny_wav2vec2))
    bank.write(2, fold(adapters[1], tiny_wav2vec2))
    before = answer(tiny_wav2vec2, bank, 1)
    bank.write(3, fold(adapters[2], tiny_wav2vec2))
    bank.write(2, fold(adapters[0], tiny_wav2vec2))
    assert torch.equal(answer(tiny_wav2vec2, bank, 1), before)


@pytest.mark.parametrize("slot", [0, 3])
def test_slots_that_are_not_there_are_refused(tiny_ast: Backbone, slot: int) -> None:
    with pytest.raises(ValueError, match=f"slot {slot} is not one of 1 to 2"):
        Bank(tiny_ast, slots=2).write(slot, fold(random_adapter(adapter_spec(), tiny_ast.spec), tiny_ast))


def test_a_slot_costs_what_its_adapter_holds(tiny_ast: Backbone) -> None:
    bank = Bank(tiny_ast, slots=64)
    assert bank.nbytes == 0
    small = fold(random_adapter(adapter_spec(4, 8, outputs=4), tiny_ast.spec), tiny_ast)
    for slot in range(1, 5):
        bank.write(slot, small)
    assert small.nbytes * 4 <= bank.nbytes <= small.nbytes * 5  # the null adapter's zeros beside
    large = fold(random_adapter(adapter_spec(128, 128), tiny_ast.spec), tiny_ast)
    bank.write(5, large)
    assert bank.nbytes <= small.nbytes * 9 + large.nbytes * 3
    for slot in range(1, 5):
        bank.write(slot, large)
    assert bank.nbytes <= large.nbytes * 9  # nothing is left of what nobody holds any more


def test_a_running_forward_keeps_what_it_selected(tiny_ast: Backbone) -> None:
    bank, adapters = Bank(tiny_ast, slots=8), [random_adapter(adapter_spec(), tiny_ast.spec, i) for i in range(8)]
    bank.write(1, fold(adapters[0], tiny_ast))
    hidden = tiny_ast.embed(torch.randn((1, *tiny_ast.input_shape(64)), generator=torch.Generator().manual_seed(0)))
    selection, generation = bank.select([1]), bank.generation
    before = tiny_ast.run_layer(0, hidden, RowAdapters(selection, 0))
    for slot in range(2, 9):
        bank.write(slot, fold(adapters[slot - 1], tiny_ast))
    assert bank.generation > generation
    assert torch.equal(tiny_ast.run_layer(0, hidden, RowAdapters(selection, 0)), before)
    assert torch.equal(tiny_ast.run_layer(0, hidden, RowAdapters(bank.select([1]), 0)), before)
