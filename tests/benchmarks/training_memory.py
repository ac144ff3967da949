"""Counts what a training step of the paper's recipes keeps in memory and computes, on base-size backbones.

`python -m tests.benchmarks.training_memory`: nothing is timed and no GPU is needed. Kept is what the backward pass
needs of an example, counted by the tensors that autograd saves; beside it stand the frozen weights and, of what is
trained, weights, gradients and Adam's two moments. What a layer frees again, and the allocator's share, come on top.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from service.model.adapter import TrainableAdapter
from service.model.backbone import Backbone
from service.model.bank import Bank
from service.model.loading import load_backbone
from service.model.spec import ModelType
from service.training.export import adapter_spec
from service.training.recipe import read_recipe
from service.training.shipped import shipped_recipes
from tests.benchmarks.geometry import checkpoint

CLASSES = {"esc50": 50, "gtzan": 10, "speech-commands": 35, "voxceleb1": 1211, "fsd50k": 200}
ARCHITECTURES = {"ast": ModelType.AST, "wav2vec2": ModelType.WAV2VEC2}
MIB = 2**20


class Step(NamedTuple):
    """Of one step: bytes kept for the backward pass, and floating-point operations of both passes."""

    kept: int
    operations: int


def step(backbone: Backbone, adapter: TrainableAdapter, window_frames: int, rows: int) -> Step:
    """One step on `rows` random examples."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    inputs = torch.randn(rows, *backbone.input_shape(window_frames))
    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda tensor: tensor):
        bank = Bank.of(backbone, [adapter.weights()])
        bank.select([1] * rows).outputs(backbone.forward(inputs, bank, [1] * rows)).sum().backward()
    return Step(sum(kept.values()), counter.get_total_flops())


def rows_of_table() -> Iterator[tuple[str, ...]]:
    """A row for each of the paper's recipes."""
    for suffix, model_type in ARCHITECTURES.items():
        with checkpoint(model_type) as directory:
            backbone = load_backbone(str(directory), "cpu", "float32")
            for task, classes in CLASSES.items():
                recipe = read_recipe(shipped_recipes()[f"{task}-{suffix}"])
                spec = adapter_spec(recipe, classes)
                adapter = TrainableAdapter(spec, backbone.spec, backbone.device)
                adapter.start(backbone)
                one, two = (step(backbone, adapter, recipe.input.window_frames, rows) for rows in (1, 2))
                each, batch = two.kept - one.kept, recipe.optimiser.batch  # but for what is kept once, as weights are
                trained = 16 * sum(parameter.numel() for parameter in adapter.parameters())
                total = each * batch + trained + 4 * backbone.spec.parameters
                operations = (two.operations - one.operations) / 1e9
                told = (f"{each / MIB:.0f}", str(batch), f"{total / MIB:,.0f}", f"{operations:.0f}")
                yield (recipe.name, str(recipe.input.window_frames), *told)


if __name__ == "__main__":
    print("| recipe | frames | MiB kept of an example | batch | MiB in all | GFLOP of an example |")
    print("|---|---|---|---|---|---|")
    for row in rows_of_table():
        print("| " + " | ".join(row) + " |", flush=True)
