"""Keys and values that a row's attention meets before its own, in every layer: prefixes, and prompts when loaded."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from service.model.groups import Group, Groups, RowSubset
from service.model.parts.part import Holding, Part, Shapes, each_layer, pad, size_class, split_heads
from service.model.parts.targets import Changes
from service.model.spec import BackboneSpec

if TYPE_CHECKING:
    from service.model.adapter import AdapterWeights
    from service.model.backbone import Backbone

PLACE = "prefix"


class Prefix(Part):
    """`prefix_length` P: `layers.{i}.prefix.key`, `.prefix.value` `[P, D]`, taken as they are (arXiv 2101.00190)."""

    since: ClassVar = {"prefix_length": 3}
    counted_as: ClassVar = "prompt"
    limits: ClassVar = {"prefix_length": 128}

    prefix_length: int = Field(default=0, ge=0)

    @property
    def is_held(self) -> bool:
        return self.prefix_length > 0

    def shapes(self, backbone: BackboneSpec) -> Shapes:
        shape = (self.prefix_length, backbone.hidden_size)
        return each_layer(backbone, {"prefix.key": shape, "prefix.value": shape})

    def prefix(self, weights: "AdapterWeights", backbone: "Backbone", changes: Changes) -> tuple[Tensor, Tensor]:
        heads = backbone.spec.num_attention_heads
        keys, values = (split_heads(weights.stack(f"prefix.{name}"), heads) for name in ("key", "value"))
        return keys, values

    def initialise(self, name: str, parameter: Tensor) -> None:
        nn.init.normal_(parameter, std=0.02)


def hold_prefix(keys: Tensor, values: Tensor) -> Holding:
    """Keys and values `[L, H, P, d]` as a slot holds them: longer ones than P are masked, which zeros alone are not."""
    length = keys.shape[2]
    padded = size_class(length)
    return Holding(PLACE, padded, {"keys": pad(keys, 2, padded), "values": pad(values, 2, padded)}, size=length)


@dataclass(frozen=True, slots=True)
class RowPrefixes:
    """The prefixes of some rows of a batch, of about one length; None for rows that have none."""

    rows: RowSubset
    group: Group | None
    masks: dict[tuple[int, torch.dtype], Tensor | None] = field(default_factory=dict)  # made once a batch

    def gather(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values `[C, H, P, d]`, P the longest among the rows."""
        if self.group is None:
            return None
        return self.group.take("keys", layer, dim=1), self.group.take("values", layer, dim=1)

    def of_row(self, row: int, layer: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values `[H, P, d]` of the c-th of the rows, as long as its own prefix, not copied."""
        if self.group is None:
            return None
        length, at = self.group.sizes[row], self.group.places[row]
        return self.group.stacks["keys"][layer, at, :, :length], self.group.stacks["values"][layer, at, :, :length]

    def mask(self, tokens: int, dtype: torch.dtype) -> Tensor | None:
        """`[C, 1, 1, P + tokens]`, 0 or -inf, that hides what pads a prefix; None where all are equally long."""
        group = self.group
        if group is None or min(group.sizes) == max(group.sizes):
            return None
        if (tokens, dtype) not in self.masks:
            lacking = torch.arange(max(group.sizes), device=group.lengths.device) >= group.lengths[:, None]
            mask = torch.zeros(lacking.shape, device=lacking.device, dtype=dtype).masked_fill_(lacking, -torch.inf)
            self.masks[tokens, dtype] = functional.pad(mask, (0, tokens))[:, None, None]
        return self.masks[tokens, dtype]


def row_prefixes(groups: Groups | None) -> Sequence[RowPrefixes]:
    """The prefixes of a batch, which together have every row once; empty where no row has one."""
    if groups is None:
        return ()
    rest = [] if groups.rest is None else [RowPrefixes(groups.rest, None)]
    return [*(RowPrefixes(group.rows, group) for group in groups.groups), *rest]
