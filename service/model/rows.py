"""Some rows of a batch, so that a part that few adapters have costs the other rows nothing. Knows no adapters."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RowSubset:
    """Rows of a batch `[B, ...]`; `index` `[C]` names them, None where they are all of it."""

    index: Tensor | None

    @classmethod
    def of(cls, rows: Sequence[int], batch: int, device: torch.device) -> "RowSubset":
        """The rows `rows`, in ascending order, of a batch of so many."""
        return cls(None if len(rows) == batch else torch.tensor(list(rows), device=device))

    def take(self, x: Tensor) -> Tensor:
        """`[B, ...]` -> `[C, ...]`."""
        return x if self.index is None else x.index_select(0, self.index)

    def put(self, x: Tensor, part: Tensor) -> Tensor:
        """`x` `[B, ...]` with `part` `[C, ...]` in place of these rows."""
        return part if self.index is None else x.index_copy(0, self.index, part)
