"""The frozen front end's part of a training step, done once for each example where a recipe asks for it.

But for input prompts, no adapter touches the front end, so its output for a fixed example never changes: with
`augment.views` set, each clip has so many augmented views, each goes through the front end once, and epochs take turns
over them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from service.model.backbone import Backbone
from service.training.batches import Batches, Pick, Wanted

KEPT_DTYPE = torch.float16  # of hidden states in memory, which a layer norm has just scaled, or normalised inputs


class FrontEnd:
    """What the adapter's part of a step starts from, for the examples of a training run.

    Args:
        input_prompts: whether that is the front end's inputs `[B, ...]`, as an input prompt is yet to be added, or
            its outputs `[B, T, D]`.
    """

    def __init__(self, backbone: Backbone, batches: Batches, input_prompts: bool = False) -> None:
        self._backbone = backbone
        self._batches = batches
        self._input_prompts = input_prompts
        self._keep = batches.augmentation.views > 0
        self._kept: dict[Pick, tuple[Tensor, Wanted]] = {}

    def __call__(self, picks: Sequence[Pick]) -> tuple[Tensor, list[Wanted]]:
        """Inputs or hidden states, float32, and what their examples should be answered with."""
        if not self._keep:
            return self._compute(picks)
        missing = [pick for pick in picks if pick not in self._kept]
        if missing:
            hidden, wanted = self._compute(missing)
            states = hidden.to(KEPT_DTYPE).unbind()
            self._kept.update(zip(missing, zip(states, wanted, strict=True), strict=True))
        found = [self._kept[pick] for pick in picks]
        return torch.stack([state for state, _ in found]).float(), [wanted for _, wanted in found]

    @torch.no_grad()
    def _compute(self, picks: Sequence[Pick]) -> tuple[Tensor, list[Wanted]]:
        examples = [self._batches.example(pick) for pick in picks]
        inputs = torch.stack([example for example, _ in examples])
        inputs = inputs.to(self._backbone.device)
        states = inputs if self._input_prompts else self._backbone.embed(inputs)
        return states, [wanted for _, wanted in examples]
