"""What wav2vec 2.0's own training does to its layers, which training an adapter may repeat; serving never does."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

MIN_STRETCHES = 2  # of masked frames in each row (`mask_time_min_masks`, as transformers has it)


@dataclass(frozen=True, slots=True)
class LayerNoise:
    """Chances, by the names of transformers' configurations.

    Args:
        bottleneck: dropout inside an adapter's bottlenecks.
        hidden: dropout behind attention and behind the feed-forward (`hidden_dropout`).
        attention: dropout of attention's weights (`attention_dropout`).
        activation: dropout between the feed-forward's two maps (`activation_dropout`).
        layerdrop: chance of a layer to be left out of a step (`layerdrop`).
        projection: dropout behind the feature projection (`feat_proj_dropout`).
        masked: share of frames that a learnt vector takes the place of, before stretches overlap (`mask_time_prob`).
        stretch: frames that are masked in a row (`mask_time_length`).
        mask: that vector `[D]` (`masked_spec_embed`).
    """

    bottleneck: float = 0.0
    hidden: float = 0.0
    attention: float = 0.0
    activation: float = 0.0
    layerdrop: float = 0.0
    projection: float = 0.0
    masked: float = 0.0
    stretch: int = 10
    mask: Tensor | None = field(default=None, compare=False)

    @classmethod
    def of(cls, config: Any, bottleneck: float) -> "LayerNoise":
        """What a backbone was trained with itself, as its configuration says, but for masks."""
        names = ("hidden_dropout", "attention_dropout", "activation_dropout", "layerdrop", "feat_proj_dropout")
        hidden, attention, activation, layerdrop, projection = (float(getattr(config, name, 0.0)) for name in names)
        return cls(bottleneck, hidden, attention, activation, layerdrop, projection)

    def behind(self, target: str, out: Tensor) -> Tensor:
        """The output of a linear map with its dropout."""
        rate = self.activation if target == "fc1" else self.hidden if target in ("o", "fc2") else 0.0
        return functional.dropout(out, rate) if rate else out

    @property
    def is_in_front(self) -> bool:
        """Whether the front end hears of it, so that what it makes of an example differs each time."""
        return self.projection > 0 or self.masked > 0

    def in_front(self, projected: Tensor) -> Tensor:
        """The feature projection's output `[U, T, D]`, frames dropped out and masked."""
        if self.projection:
            projected = functional.dropout(projected, self.projection)
        if self.masked and self.mask is not None:
            places = self.masks(len(projected), projected.shape[1]).to(projected.device)
            projected = torch.where(places[..., None], self.mask.to(projected), projected)
        return projected

    def masks(self, rows: int, frames: int) -> Tensor:
        """Which frames are masked `[rows, frames]`: in each row as many stretches, at different places."""
        stretch = min(self.stretch, frames)
        count = int(self.masked * frames / stretch + float(torch.rand(())))  # rounded up by chance
        count = min(max(count, MIN_STRETCHES), frames // stretch)
        starts = torch.rand(rows, frames - stretch + 1).argsort(dim=1)[:, :count, None]
        places = (starts + torch.arange(stretch)).flatten(1)
        return torch.zeros(rows, frames, dtype=torch.bool).scatter_(1, places, True)

    def skips(self) -> bool:
        """Whether the next layer is left out."""
        return self.layerdrop > 0 and float(torch.rand(())) < self.layerdrop


QUIET = LayerNoise()  # nobody's but serving's: asked by identity, so that it costs no call
