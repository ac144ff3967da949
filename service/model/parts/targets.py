"""What adapters change in a layer's own linear maps: LoRA, DoRA, IA3 and BitFit meet here, as one formula.

A target's output for a row becomes `y * scale + (x a) b + shift`, y being the frozen map's output for `x` scaled by
`input`. DoRA's magnitudes and IA3's output vectors are `scale`; whatever can be multiplied into `b` and `shift` is,
when the adapter is loaded (contract, section 5).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from service.model.groups import Group, Groups
from service.model.layers import Module
from service.model.parts.part import Holding, pad, size_class
from service.model.spec import BackboneSpec

if TYPE_CHECKING:
    from service.model.adapter import AdapterWeights
    from service.model.backbone import Backbone

TARGETS: Final = ("q", "k", "v", "o", "fc1", "fc2")


@dataclass(frozen=True, slots=True)
class Change:
    """What one adapter changes in one target, in all layers; None where nothing."""

    a: Tensor | None = None  # [L, in, r]
    b: Tensor | None = None  # [L, r, out], with all that multiplies it
    scale: Tensor | None = None  # [L, 1, out]
    shift: Tensor | None = None  # [L, 1, out]
    input: Tensor | None = None  # [L, 1, in]

    def apply(self, layer: int, x: Tensor, linear: Module) -> Tensor:
        """The changed map `[..., in]` -> `[..., out]` of one layer, for one adapter alone."""
        x = x if self.input is None else x * self.input[layer]
        y = linear(x)
        y = y if self.scale is None else y * self.scale[layer]
        y = y if self.a is None or self.b is None else y + x @ self.a[layer] @ self.b[layer]
        return y if self.shift is None else y + self.shift[layer]


Changes = Mapping[str, Change]


def changes_of(weights: "AdapterWeights", backbone: "Backbone") -> Changes:
    """What an adapter changes, by target; targets that it leaves alone are absent."""
    found = {}
    for target in TARGETS:
        change = Change()
        for part in weights.spec.parts:
            change = part.change(target, change, weights, backbone)
        if change != Change():
            found[target] = change
    return found


def place_of(target: str) -> str:
    return f"target.{target}"


@dataclass(frozen=True, slots=True)
class Kind:
    """What changes of one group have in common: a rank, padded, and which vectors there are."""

    rank: int
    scale: bool
    shift: bool
    input: bool


def hold_change(target: str, change: Change) -> Holding:
    """A change as a slot holds it. All zeros change nothing: factors are kept less one, ranks padded with zeros."""
    rank = 0 if change.a is None else change.a.shape[2]
    width = size_class(rank) if rank else 0
    tensors: dict[str, Tensor] = {}
    if change.a is not None and change.b is not None:
        tensors |= {"a": pad(change.a, 2, width), "b": pad(change.b, 1, width)}
    if change.scale is not None:
        tensors["scale"] = change.scale - 1
    if change.shift is not None:
        tensors["shift"] = change.shift
    if change.input is not None:
        tensors["input"] = change.input - 1
    return Holding(
        place_of(target), Kind(width, *(name in tensors for name in ("scale", "shift", "input"))), tensors, size=rank
    )


def project(groups: Groups, layer: int, x: Tensor, linear: Module) -> Tensor:
    """A target's output before its activation, `[B, T, in]` -> `[B, T, out]`, each row by its own adapter's change."""
    scaled = x
    for group in groups.groups:
        if group.kind.input:
            scaled = group.rows.put(scaled, _scale_input(group, layer, group.rows.take(x)))
    y = linear(scaled)
    for group in groups.groups:
        y = _put(group, y, _changed(group, layer, group.rows.take(scaled), group.rows.take(y)))
    return y


def change_columns(groups: Groups, layer: int, x: Tensor, y: Tensor, linear: Module, columns: slice) -> Tensor:
    """As `project`, of a target that is some `columns` of a wider map `linear`; `y` is what they are for `x`."""
    for group in groups.groups:
        mine, out = group.rows.take(x), group.rows.take(y)
        if group.kind.input:
            mine = _scale_input(group, layer, mine)
            out = linear(mine)[..., columns]
        y = _put(group, y, _changed(group, layer, mine, out))
    return y


def _put(group: Group, y: Tensor, changed: Tensor) -> Tensor:
    # y has just been computed and is nobody else's, so rows that change nothing are not copied.
    return changed if group.rows.index is None else y.index_copy_(0, group.rows.index, changed)


def _changed(group: Group, layer: int, x: Tensor, y: Tensor) -> Tensor:
    if group.kind.scale:
        y = torch.addcmul(y, y, group.take("scale", layer).to(y.dtype))
    if group.kind.rank:
        a, b = group.take("a", layer, dim=1), group.take("b", layer, dim=0)
        y = torch.baddbmm(y.to(b.dtype), torch.bmm(x.to(a.dtype), a), b).to(y.dtype)
    return y + group.take("shift", layer).to(y.dtype) if group.kind.shift else y


def _scale_input(group: Group, layer: int, x: Tensor) -> Tensor:
    return torch.addcmul(x, x, group.take("input", layer).to(x.dtype))


def target_shape(target: str, backbone: BackboneSpec) -> tuple[int, int]:
    """`[out, in]` of a target's weight."""
    width, wide = backbone.hidden_size, backbone.feed_forward_size
    return {"fc1": (wide, width), "fc2": (width, wide)}.get(target, (width, width))
