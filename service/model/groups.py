"""The rows of a batch by what their adapters hold: rows of one kind run together, the others pay nothing for it."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
        stacks: the bank's tensors of that kind, `[L or 1, S, ...]`.
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

    def take(self, name: str, layer: int, dim: int | None = None) -> Tensor:
        """A copy for each row, `[C, ...]`; along dimension `dim` of one row's only as much as the longest has."""
        stack = self.stacks[name][layer]
        if dim is not None:
            stack = stack.narrow(dim + 1, 0, max(self.sizes))
        return stack.index_select(0, self.index)


@dataclass(frozen=True, slots=True)
class Groups:
    """All rows that hold something at one place, by kind, and the rest; `rest` is None where there is none."""

    groups: Sequence[Group]
    rest: RowSubset | None


@dataclass(frozen=True, slots=True)
class Draft:
    """Rows that will be a group as soon as their numbers are on the device."""

    kind: Hashable
    stacks: Mapping[str, Tensor]
    rows: list[int]
    places: list[int]
    sizes: list[int]

    def add(self, row: int, place: int, size: int) -> None:
        self.rows.append(row)
        self.places.append(place)
        self.sizes.append(size)

    def lists(self) -> list[list[int]]:
        return [self.rows, self.places, self.sizes]

    def on_device(self, sent: Sequence[Tensor], batch: int) -> Group:
        rows, index, lengths = sent
        subset = RowSubset(self.rows, None if len(self.rows) == batch else rows)
        return Group(self.kind, self.stacks, self.places, index, self.sizes, lengths, subset)


def join_few(drafts: list[Draft], batch: int) -> list[Draft]:
    """Lets the few rows that hold nothing run with the others, as zeros, where copying those out would cost more."""
    if len(drafts) != 1 or len(drafts[0].rows) == batch or (batch - len(drafts[0].rows)) * _FEW > batch:
        return drafts
    (draft,) = drafts
    held = {row: (place, size) for row, place, size in zip(draft.rows, draft.places, draft.sizes, strict=True)}
    everyone = [held.get(row, (0, 0)) for row in range(batch)]
    places, sizes = [place for place, _ in everyone], [size for _, size in everyone]
    return [Draft(draft.kind, draft.stacks, list(range(batch)), places, sizes)]


def send(lists: Sequence[Sequence[int]], device: torch.device) -> list[Tensor]:
    """Lists of integers on the device, in one copy."""
    if not any(lists):
        return [torch.empty(0, dtype=torch.long, device=device) for _ in lists]
    flat = torch.tensor([number for each in lists for number in each], dtype=torch.long)
    if device.type == "cuda" and torch.cuda.is_available():
        flat = flat.pin_memory()
    return list(torch.split(flat.to(device, non_blocking=True), [len(each) for each in lists]))
