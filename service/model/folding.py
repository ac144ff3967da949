"""An adapter as a slot of the bank holds it: what can be computed once, when it is loaded, has been computed."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from service.model.adapter import AdapterWeights
from service.model.parts.part import Holding
from service.model.parts.prefix import hold_prefix
from service.model.parts.targets import changes_of, hold_change

if TYPE_CHECKING:
    from service.model.backbone import Backbone

_ALIGNMENT = 16  # bytes, of every tensor in a buffer


@dataclass(frozen=True, slots=True)
class FoldedAdapter:
    """What one adapter holds at each place of the forward.

    Args:
        buffer: bytes in which all of the tensors lie, on the host, as the device will hold them; None in training.
    """

    holdings: tuple[Holding, ...]
    buffer: Tensor | None = None

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for holding in self.holdings for tensor in holding.tensors.values())

    def to_device(self, device: torch.device) -> "FoldedAdapter":
        """The same on the device: one copy of its buffer."""
        if self.buffer is None or self.buffer.device == device:
            return self
        return self._over(self.buffer.to(device, non_blocking=True))

    def _over(self, buffer: Tensor) -> "FoldedAdapter":
        """The same tensors in another buffer of the same bytes."""
        end, holdings = 0, []
        for holding in self.holdings:
            tensors = {}
            for name, tensor in holding.tensors.items():
                tensors[name] = buffer[end : end + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
                end += _aligned(tensor.nbytes)
            holdings.append(replace(holding, tensors=tensors))
        return FoldedAdapter(tuple(holdings), buffer)


def fold(weights: AdapterWeights, backbone: "Backbone") -> FoldedAdapter:
    """An adapter ready for its slot: in the backbone's dtype, in one buffer on the host, so that a load is one copy."""
    with torch.no_grad():
        return pack(fold_exactly(weights, backbone), backbone.dtype)


def fold_exactly(weights: AdapterWeights, backbone: "Backbone") -> FoldedAdapter:
    """Folds in float32 on the backbone's device; gradients pass through."""
    placed = weights.to(backbone.device)
    return FoldedAdapter(tuple(_holdings(placed, backbone)))


def pack(folded: FoldedAdapter, dtype: torch.dtype) -> FoldedAdapter:
    """Rounds to `dtype` what need not stay exact, and lays all of it into one buffer on the host."""
    rounded = [
        replace(held, tensors={n: t.to(torch.float32 if held.exact else dtype) for n, t in held.tensors.items()})
        for held in folded.holdings
    ]
    size = sum(_aligned(tensor.nbytes) for held in rounded for tensor in held.tensors.values())
    pinned = torch.cuda.is_available()
    packed = FoldedAdapter(tuple(rounded))._over(torch.empty(size, dtype=torch.uint8, pin_memory=pinned))
    for target, source in zip(packed.holdings, rounded, strict=True):
        for name, tensor in source.tensors.items():
            target.tensors[name].copy_(tensor)
    return packed


def _holdings(weights: AdapterWeights, backbone: "Backbone") -> Iterable[Holding]:
    parts, changes = weights.spec.parts, changes_of(weights, backbone)
    for part in parts:
        yield from part.hold(weights, backbone)
    for target, change in changes.items():
        yield hold_change(target, change)
    pairs = [pair for part in parts if (pair := part.prefix(weights, backbone, changes)) is not None]
    if pairs:  # a prompt and a prefix of one adapter lie behind each other
        keys, values = (torch.cat(tensors, dim=2) for tensors in zip(*pairs, strict=True))
        yield hold_prefix(keys, values)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT
