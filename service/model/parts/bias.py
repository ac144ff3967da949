"""BitFit (arXiv 2106.10199): what is added to the biases of a layer's linear maps."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field

from service.model.parts.low_rank import Target
from service.model.parts.part import Change, Part, Shapes, Source
from service.model.spec import TARGETS, BackboneSpec

_FIRST_VERSION = 3  # of the bundle format that may hold biases; its manifest need not say so


class Bias(Part):
    """`layers.{i}.bias.{t}` `[out]`, of those targets and layers that the weights have.

    Args:
        bias: the targets, in every layer; None for those that the weights have.
    """

    since: ClassVar = {"bias": _FIRST_VERSION}

    bias: list[Target] | None = Field(default=None, min_length=1)
    may_hold: bool = Field(default=False, exclude=True)

    @classmethod
    def gather(cls, fields: Any, version: int) -> dict[str, Any]:
        return super().gather(fields, version) | {"may_hold": version >= _FIRST_VERSION}

    @property
    def family(self) -> str:  # type: ignore[override]
        return "bitfit" if self.bias else ""

    @property
    def is_held(self) -> bool:
        return self.may_hold

    def shapes(self, backbone: BackboneSpec) -> Shapes:
        return {name: shape for table in _tables(backbone, self.bias or ()) for name, shape in table.items()}

    def optional_shapes(self, backbone: BackboneSpec) -> list[Shapes]:
        return _tables(backbone, TARGETS) if self.bias is None else []

    def change(self, target: str, change: Change, source: Source) -> Change:
        names = [_name(i, target) for i in range(source.backbone.spec.num_hidden_layers)]
        found = next((source.tensors[name] for name in names if name in source.tensors), None)
        if found is None:
            return change
        nothing = torch.zeros_like(found)
        added = torch.stack([source.tensors.get(name, nothing) for name in names])[:, None]
        return replace(change, shift=added if change.shift is None else change.shift + added)


def _name(layer: int, target: str) -> str:
    return f"layers.{layer}.bias.{target}"


def _tables(backbone: BackboneSpec, targets: Iterable[str]) -> list[Shapes]:
    layers = range(backbone.num_hidden_layers)
    return [{_name(i, target): backbone.target_shape(target)[:1]} for i in layers for target in targets]
