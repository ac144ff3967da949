"""What adapters change in a layer's own linear maps: LoRA, DoRA, IA3 and BitFit meet here, as one formula.

A target's output for a row becomes `y * scale + (x a) b + shift`, y being the frozen map's output for `x` scaled by
`input`. DoRA's magnitudes and IA3's output vectors are `scale`; whatever can be multiplied into `b` and `shift` is,
when the adapter is loaded (contract, section 5).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from service.model.groups import Group
from service.model.layers import Module
from service.model.parts.part import Change, Holding, size_class


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
        tensors |= {"a": change.a, "b": change.b}
    if change.scale is not None:
        tensors["scale"] = change.scale - 1
    if change.shift is not None:
        tensors["shift"] = change.shift
    if change.input is not None:
        tensors["input"] = change.input - 1
    kind = Kind(width, *(name in tensors for name in ("scale", "shift", "input")))
    return Holding(target, kind, tensors, rank, {"a": 2, "b": 1} if rank else {}).padded(width)


def project(groups: Sequence[Group], layer: int, x: Tensor, linear: Module) -> Tensor:
    """A target's output before its activation, `[B, T, in]` -> `[B, T, out]`, each row by its own adapter's change."""
    scaled, changes = x, [(group, group.gather(layer)) for group in groups]
    for group, own in changes:
        if group.kind.input:
            scaled = group.rows.put(scaled, _scale_input(own, group.rows.take(x)))
    y = linear(scaled)
    for group, own in changes:
        y = _put(group, y, _changed(group.kind, own, group.rows.take(scaled), group.rows.take(y)))
    return y


def change_columns(groups: Sequence[Group], layer: int, x: Tensor, y: Tensor, linear: Module, columns: slice) -> Tensor:
    """As `project`, of a target that is some `columns` of a wider map `linear`; `y` is what they are for `x`."""
    for group in groups:
        own, mine, out = group.gather(layer), group.rows.take(x), group.rows.take(y)
        if group.kind.input:
            mine = _scale_input(own, mine)
            out = linear(mine)[..., columns]
        y = _put(group, y, _changed(group.kind, own, mine, out))
    return y


def _put(group: Group, y: Tensor, changed: Tensor) -> Tensor:
    # y has just been computed and is nobody else's, so rows that change nothing are not copied.
    return changed if group.rows.index is None else y.index_copy_(0, group.rows.index, changed)


def _changed(kind: Kind, own: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    if kind.scale:
        y = torch.addcmul(y, y, own["scale"].to(y.dtype))
    if kind.rank:
        a, b = own["a"], own["b"]
        y = torch.baddbmm(y.to(b.dtype), torch.bmm(x.to(a.dtype), a), b).to(y.dtype)
    return y + own["shift"].to(y.dtype) if kind.shift else y


def _scale_input(own: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return torch.addcmul(x, x, own["input"].to(x.dtype))
