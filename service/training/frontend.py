"""The frozen front end's part of a training step, done once for each example where a recipe asks for it.

No adapter touches the front end, so its output for a fixed example never changes: with `augment.views` set, each
clip has so many augmented views, each goes through the front end once, and epochs take turns over them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from service.model.backbone import Backbone
from service.training.batches import Batches, Pick, Wanted

KEPT_DTYPE = torch.float16  # of hidden states in memory, which a layer norm has just scaled


class FrontEnd:
    """Hidden states in front of the first layer, for the examples of a training run."""

    def __init__(self, backbone: Backbone, batches: Batches) -> None:
        self._backbone = backbone
        self._batches = batches
        self._keep = batches.augmentation.views > 0
        self._kept: dict[Pick, tuple[Tensor, Wanted]] = {}

    def __call__(self, picks: Sequence[Pick]) -> tuple[Tensor, list[Wanted]]:
        """Hidden states `[B, T, D]`, float32, and what their examples should be answered with."""
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
        return self._backbone.embed(inputs.to(self._backbone.device)), [wanted for _, wanted in examples]
