"""An adapter as a slot of the bank holds it: what can be computed once, when it is loaded, has been computed."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from service.model.adapter import AdapterWeights
from service.model.parts.part import Change, Frozen, Holding, Source
from service.model.parts.prefix import hold_prefix
from service.model.parts.targets import hold_change
from service.model.precision import host_memory
from service.model.spec import TARGETS

_ALIGNMENT = 16  # bytes, of every tensor in a buffer


@dataclass(frozen=True, slots=True)
class FoldedAdapter:
    """What one adapter holds at each place of the forward.

    Args:
        buffer: bytes in which all of the tensors lie, on the host, as the device will hold them.
    """

    holdings: tuple[Holding, ...]
    buffer: Tensor

    @classmethod
    def over(cls, buffer: Tensor, holdings: Iterable[Holding]) -> "FoldedAdapter":
        """Tensors like those of `holdings`, one behind the other in a buffer."""
        end, placed = 0, []
        for holding in holdings:
            tensors = {}
            for name, tensor in holding.tensors.items():
                tensors[name] = buffer[end : end + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
                end += _aligned(tensor.nbytes)
            placed.append(replace(holding, tensors=tensors))
        return cls(tuple(placed), buffer)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for holding in self.holdings for tensor in holding.tensors.values())

    def to_device(self, device: torch.device) -> "FoldedAdapter":
        """The same on the device: one copy of its buffer."""
        if self.buffer.device == device:
            return self
        return FoldedAdapter.over(self.buffer.to(device, non_blocking=True), self.holdings)


@torch.no_grad()
def fold(weights: AdapterWeights, backbone: Frozen) -> FoldedAdapter:
    """An adapter ready for its slot: what need not stay exact in the backbone's dtype, in one buffer on the host."""
    rounded = []
    for held in hold_all(weights, backbone):
        dtype = torch.float32 if held.exact else backbone.dtype
        rounded.append(replace(held, tensors={name: tensor.to(dtype) for name, tensor in held.tensors.items()}))
    size = sum(_aligned(tensor.nbytes) for held in rounded for tensor in held.tensors.values())
    folded = FoldedAdapter.over(host_memory((size,), torch.uint8, backbone.device), rounded)
    for target, source in zip(folded.holdings, rounded, strict=True):
        for name, tensor in source.tensors.items():
            target.tensors[name].copy_(tensor)
    return folded


def hold_all(weights: AdapterWeights, backbone: Frozen) -> Iterable[Holding]:
    """Folds in float32 where the weights are; only prompts need the backbone's device. Gradients pass through."""
    source, parts, changes = Source(weights.tensors, backbone), weights.spec.parts, {}
    for target in TARGETS:
        change = Change()
        for part in parts:
            change = part.change(target, change, source)
        if change != Change():
            changes[target] = change
    for part in parts:
        yield from part.hold(source)
    for target, change in changes.items():
        yield hold_change(target, change)
    pairs = [pair for part in parts if (pair := part.prefix(source, changes)) is not None]
    if pairs:  # a prompt and a prefix of one adapter lie behind each other
        keys, values = (torch.cat(tensors, dim=2) for tensors in zip(*pairs, strict=True))
        yield hold_prefix(keys, values)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT
