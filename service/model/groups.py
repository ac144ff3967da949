"""The rows of a batch by what their adapters hold: rows of one kind run together, the others pay nothing for it."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from service.model.precision import host_memory

_FEW = 4  # a batch's rows over those without a part, from which on they run with the others


@dataclass(frozen=True, slots=True)
class RowSubset:
    """Rows of a batch `[B, ...]`, in ascending order.

    Args:
        numbers: which they are.
        index: the same on the device, `[C]`; None where they are all of the batch.
    """

    numbers: Sequence[int]
    index: Tensor | None

    def take(self, x: Tensor) -> Tensor:
        """`[B, ...]` -> `[C, ...]`."""
        return x if self.index is None else x.index_select(0, self.index)

    def put(self, x: Tensor, part: Tensor) -> Tensor:
        """`x` `[B, ...]` with `part` `[C, ...]` in place of these rows."""
        return part if self.index is None else x.index_copy(0, self.index, part)

    def add(self, x: Tensor, part: Tensor) -> Tensor:
        """`x` `[B, ...]` with `part` `[C, ...]` added to these rows."""
        return x + part if self.index is None else x.index_add(0, self.index, part)


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of a batch whose adapters hold the same kind of thing at one place.

    Args:
        kind: as their `Holding` has it.
        stacks: the bank's tensors of that kind, `[L or 1, S, ...]`, what is padded as long as the longest row's.
        places: where in the stacks each of the C rows has its own; 0 is nothing, all zeros.
        index: the same on the device, `[C]`.
        sizes: how much of the padded length is each row's own.
        lengths: the same on the device, `[C]`.
    """

    kind: Any
    stacks: Mapping[str, Tensor]
    places: Sequence[int]
    index: Tensor
    sizes: Sequence[int]
    lengths: Tensor
    rows: RowSubset

    def take(self, name: str) -> Tensor:
        """A copy for each row, `[C, ...]`, of what is no layer's."""
        return self.stacks[name][0].index_select(0, self.index)

    def gather(self, layer: int) -> dict[str, Tensor]:
        """A copy of all of a layer's for each row, `[C, ...]`."""
        return {name: stack[layer].index_select(0, self.index) for name, stack in self.stacks.items()}


@dataclass(frozen=True, slots=True)
class Draft:
    """Rows that will be a group as soon as their numbers are on the device.

    Args:
        along: the dimension of each stack that is padded.
        held: each row, its place in the stacks, and its size.
    """

    kind: Hashable
    stacks: Mapping[str, Tensor]
    along: Mapping[str, int]
    held: list[tuple[int, int, int]]

    def on_device(self, rows: Tensor, index: Tensor, lengths: Tensor, batch: int) -> Group:
        numbers, places, sizes = zip(*self.held, strict=True)
        longest, along = max(sizes), self.along
        stacks = {n: stack.narrow(along[n], 0, longest) if n in along else stack for n, stack in self.stacks.items()}
        return Group(
            *(self.kind, stacks, places, index, sizes, lengths),
            RowSubset(numbers, None if len(numbers) == batch else rows),
        )


def join_few(drafts: list[Draft], rest: Sequence[int]) -> list[Draft]:
    """Lets few rows that hold nothing, `rest`, run with the others, as zeros, where copying those out costs more."""
    if len(drafts) != 1 or len(rest) * _FEW > len(rest) + len(drafts[0].held):
        return drafts
    return [replace(drafts[0], held=sorted([*drafts[0].held, *((row, 0, 0) for row in rest)]))]


def send(lists: Sequence[Sequence[int]], device: torch.device) -> list[Tensor]:
    """Lists of integers on the device, in one copy."""
    if not any(lists):
        return [torch.empty(0, dtype=torch.long, device=device) for _ in lists]
    flat = torch.tensor([number for each in lists for number in each])
    if device.type == "cuda":
        flat = host_memory(flat.shape, flat.dtype, device).copy_(flat)
    return list(torch.split(flat.to(device, non_blocking=True), [len(each) for each in lists]))
