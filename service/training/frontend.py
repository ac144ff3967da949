"""The frozen front end's part of a training step, done once for each example where a recipe asks for it.

No adapter touches the front end, so its output for a fixed example never changes: with `augment.views` set, each
clip has so many augmented views, each goes through the front end once, and epochs take turns over them. What changes
the input or the front end itself (an input prompt, full fine-tuning) takes the inputs as they are instead.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from service.model.backbone import Backbone
from service.training.batches import Made, Pick, Wanted
from service.training.loader import Loader

KEPT_DTYPE = torch.float16  # of hidden states in memory, which a layer norm has just scaled, or normalised inputs


class FrontEnd:
    """What the trained part reads, for the examples of a training run.

    Args:
        keep: whether examples come round again and are worth keeping.
        bypass: whether to give inputs `[B, ...]` instead of hidden states `[B, T, D]`.
    """

    def __init__(self, backbone: Backbone, loader: Loader, *, keep: bool, bypass: bool) -> None:
        self._backbone = backbone
        self._loader = loader
        self._keep = keep
        self._bypass = bypass
        self._kept: dict[Pick, tuple[Tensor, Wanted]] = {}

    def __call__(self, steps: Sequence[Sequence[Pick]]) -> Iterator[tuple[Tensor, list[Wanted]]]:
        """What each step's readable examples are, float32 on the backbone's device, and what they should give."""
        missing = [[pick for pick in dict.fromkeys(picks) if pick not in self._kept] for picks in steps]
        for picks, made in zip(steps, self._loader(missing), strict=True):
            yield self._step(picks, made)

    def _step(self, picks: Sequence[Pick], made: Made) -> tuple[Tensor, list[Wanted]]:
        states = self._embed(made.inputs) if len(made.picks) else made.inputs
        if not self._keep:
            return states, list(made.wanted)
        fresh = zip(states.to(KEPT_DTYPE).unbind(), made.wanted, strict=True)
        self._kept.update(zip(made.picks, fresh, strict=True))
        found = [self._kept[pick] for pick in picks if pick in self._kept]
        if not found:
            return states, []
        return torch.stack([state for state, _ in found]).float(), [wanted for _, wanted in found]

    @torch.no_grad()
    def _embed(self, inputs: Tensor) -> Tensor:
        inputs = inputs.to(self._backbone.device)
        return inputs if self._bypass else self._backbone.embed(inputs)
