"""A head that reads all layers: a learnt weighted sum of their outputs (as ELMo and SUPERB).

`sum over l of softmax(w)[l] h_l`, where h_0 is the front end's output and h_l that of layer l, is pooled as the last
layer's output would be.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from service.model.groups import RowSubset
from service.model.parts.part import Holding, Part, Shapes, Source
from service.model.spec import BackboneSpec

PLACE = "layers"
_TENSOR = "head.layers.weight"


class LayerAggregation(Part):
    """`layer_aggregation`: `head.layers.weight` `[L + 1]`, before the softmax."""

    since: ClassVar = {"layer_aggregation": 2}
    counted_as: ClassVar = "head"

    layer_aggregation: bool = False

    @property
    def is_held(self) -> bool:
        return self.layer_aggregation

    def shapes(self, backbone: BackboneSpec) -> Shapes:
        return {_TENSOR: (backbone.num_hidden_layers + 1,)}  # training starts at zeros, the mean over layers

    def hold(self, source: Source) -> Iterable[Holding]:
        yield Holding(PLACE, None, {"shares": source.tensors[_TENSOR].softmax(0)[None]}, exact=True)


@dataclass(slots=True)
class Aggregation:
    """The sums over layers of those rows of a batch whose heads read all of them, as they grow."""

    shares: Tensor  # [C, L + 1], each row's sum is 1
    rows: RowSubset
    total: Tensor | None = None  # [C, T, D]

    def add(self, layer: int, hidden: Tensor) -> None:
        """The share of `hidden` `[B, T, D]`, output of layer `layer`, or 0 of the front end."""
        share = self.shares[:, layer, None, None] * self.rows.take(hidden)
        self.total = share if self.total is None else self.total + share

    def sum(self) -> Tensor:
        """`[C, T, D]`."""
        return torch.zeros(0) if self.total is None else self.total
