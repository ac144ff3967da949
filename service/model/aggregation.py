"""A head that reads all layers: a learnt weighted sum of their outputs (as ELMo and SUPERB). Knows no slots.

`sum over l of softmax(w)[l] h_l`, where h_0 is the front end's output and h_l that of layer l, is pooled as the last
layer's output would be.
"""

from dataclasses import dataclass

from torch import Tensor

from service.model.rows import RowSubset


@dataclass(frozen=True, slots=True)
class RowAggregation:
    """The weights of those rows of a batch whose heads read all layers."""

    weights: Tensor  # [C, L + 1], each row's sum is 1
    rows: RowSubset

    def add(self, total: Tensor | None, layer: int, hidden: Tensor) -> Tensor:
        """`total` `[C, T, D]` and the share of `hidden` `[B, T, D]`, output of layer `layer`, or 0 of the front end."""
        share = self.weights[:, layer, None, None] * self.rows.take(hidden)
        return share if total is None else total + share
