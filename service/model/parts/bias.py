"""BitFit (arXiv 2106.10199): what is added to the biases of a layer's linear maps."""

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field

from service.model.parts.low_rank import Target
from service.model.parts.part import Part, Shapes
from service.model.parts.targets import TARGETS, Change, target_shape
from service.model.spec import BackboneSpec

if TYPE_CHECKING:
    from service.model.adapter import AdapterWeights
    from service.model.backbone import Backbone

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
    def is_held(self) -> bool:
        return self.may_hold

    def shapes(self, backbone: BackboneSpec) -> Shapes:
        layers = range(backbone.num_hidden_layers)
        return {_name(i, t): target_shape(t, backbone)[:1] for i in layers for t in dict.fromkeys(self.bias or ())}

    def optional_shapes(self, backbone: BackboneSpec) -> list[Shapes]:
        layers = range(backbone.num_hidden_layers) if self.bias is None else ()
        return [{_name(i, t): target_shape(t, backbone)[:1]} for i in layers for t in TARGETS]

    def change(self, target: str, change: Change, weights: "AdapterWeights", backbone: "Backbone") -> Change:
        layers = range(backbone.spec.num_hidden_layers)
        if not any(_name(i, target) in weights.tensors for i in layers):
            return change
        nothing = next(iter(weights.tensors.values())).new_zeros(target_shape(target, backbone.spec)[:1])
        added = torch.stack([weights.tensors.get(_name(i, target), nothing) for i in layers])[:, None]
        shift = added if change.shift is None else change.shift + added
        return Change(change.a, change.b, change.scale, shift, change.input)


def _name(layer: int, target: str) -> str:
    return f"layers.{layer}.bias.{target}"
