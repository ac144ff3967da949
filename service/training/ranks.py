"""The processes of one training run, one for each GPU, started by `accelerate launch`. Knows no models.

Every process holds the whole adapter, takes its share of each batch, and adds up gradients with the others: the sum
is that of the whole batch, so the number of processes changes nothing but rounding and dropout's noise.
"""

import os
from collections.abc import Sequence
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

_T = TypeVar("_T")


class Ranks:
    """This process among those of the run; alone unless a launcher says otherwise."""

    def __init__(self, device: str = "auto") -> None:
        self._accelerator = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            self._accelerator = Accelerator(cpu=device == "cpu")
        self.device = device if self._accelerator is None else str(self._accelerator.device)

    @property
    def count(self) -> int:
        return 1 if self._accelerator is None else int(self._accelerator.num_processes)

    @property
    def index(self) -> int:
        return 0 if self._accelerator is None else int(self._accelerator.process_index)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and shows progress."""
        return self.index == 0

    def share(self, batch: Sequence[_T]) -> list[_T]:
        """This process's part of a batch."""
        return list(batch[self.index :: self.count])

    def mean(self, parameters: Sequence[Tensor], loss: float, rows: int) -> float:
        """Turn gradients of the mean over this process's rows into those of the mean over all rows.

        Returns:
            the loss over all rows; NaN where there is none.
        """
        if self._accelerator is None:
            return loss
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([gradient.float().flatten() for gradient in gradients])
        tail = torch.tensor([loss if rows else 0.0, 1.0], device=flat.device)
        total: Tensor = self._accelerator.reduce(torch.cat((flat, tail)) * rows, "sum")
        total = total / total[-1]
        for parameter, part in zip(parameters, torch.split(total[:-2], [p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)
        return float(total[-2])

    def agree(self, value: int) -> int:
        """The main process's value, everywhere."""
        if self._accelerator is None:
            return value
        mine = torch.tensor(value if self.is_main else 0, device=self._accelerator.device)
        return int(self._accelerator.reduce(mine, "sum"))

    def wait(self) -> None:
        """Until every process has come so far."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()

    def close(self) -> None:
        """Leave the group, when all have come so far."""
        if self._accelerator is not None:
            self.wait()
            self._accelerator.end_training()
