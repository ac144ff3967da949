"""Keys and values that a row's attention meets before its own, in every layer: prefixes, and prompts when loaded."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from service.model.groups import Group
from service.model.layers import split_heads
from service.model.parts.part import Changes, Holding, Part, Shapes, Source, each_layer, size_class
from service.model.spec import BackboneSpec

PLACE = "prefix"


class Prefix(Part):
    """`prefix_length` P: `layers.{i}.prefix.key`, `.prefix.value` `[P, D]`, taken as they are (arXiv 2101.00190)."""

    family: ClassVar = "prefix"
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

    def prefix(self, source: Source, changes: Changes) -> tuple[Tensor, Tensor]:
        heads = source.backbone.spec.num_attention_heads
        return split_heads(source.stack("prefix.key"), heads), split_heads(source.stack("prefix.value"), heads)

    def initialise(self, name: str, parameter: Tensor) -> None:
        nn.init.normal_(parameter, std=0.02)


def hold_prefix(keys: Tensor, values: Tensor) -> Holding:
    """Keys and values `[L, H, P, d]` as a slot holds them: longer ones than P are masked, which zeros alone are not."""
    length, held = keys.shape[2], {"keys": keys, "values": values}
    padded = size_class(length)
    return Holding(PLACE, padded, held, length, along={"keys": 2, "values": 2}).padded(padded)


@dataclass(frozen=True, slots=True)
class RowPrefixes:
    """The prefixes of some rows of a batch, of about one length; or the rows that have none, whose kind is None."""

    group: Group
    masks: dict[tuple[int, torch.dtype], Tensor | None] = field(default_factory=dict)  # made once a batch

    def gather(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values `[C, H, P, d]`, P the longest among the rows."""
        if self.group.kind is None:
            return None
        own = self.group.gather(layer)
        return own["keys"], own["values"]

    def mask(self, tokens: int, dtype: torch.dtype) -> Tensor | None:
        """`[C, 1, 1, P + tokens]`, 0 or -inf, that hides what pads a prefix; None where all are equally long."""
        sizes, lengths = self.group.sizes, self.group.lengths
        if min(sizes) == max(sizes):
            return None
        if (tokens, dtype) not in self.masks:
            lacking = torch.arange(max(sizes), device=lengths.device) >= lengths[:, None]
            mask = torch.zeros(lacking.shape, device=lacking.device, dtype=dtype).masked_fill_(lacking, -torch.inf)
            self.masks[tokens, dtype] = functional.pad(mask, (0, tokens))[:, None, None]
        return self.masks[tokens, dtype]
