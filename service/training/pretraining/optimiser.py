"""The optimiser of pre-training: AdamW, and Muon for a backbone's matrices. Knows no tasks and no schedule."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.98)
Moments = dict[int, dict[str, Tensor]]  # by the number of the parameter


class Optimiser:
    """AdamW on `groups` and Muon (torch.optim.Muon: orthogonalised momentum) on `matrices`, as if they were one.

    Parameters are numbered through, those of `groups` first.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        matrices: Sequence[nn.Parameter] = (),
        *,
        weight_decay: float,
        scale: float = 1.0,
    ) -> None:
        """`scale`: the learning rate of `matrices`, relative to that of the others; groups may have one too."""
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(list(groups), weight_decay=weight_decay, betas=BETAS)
        ]
        if matrices:
            group = {"params": list(matrices), "scale": scale}
            self._parts.append(torch.optim.Muon([group], weight_decay=weight_decay))

    def set_rate(self, rate: float) -> None:
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = rate * group.get("scale", 1.0)

    def zero_grad(self) -> None:
        for part in self._parts:
            part.zero_grad()

    def step(self) -> None:
        for part in self._parts:
            part.step()

    def moments(self) -> Moments:
        """What it has gathered of every parameter: tensors to be read, not changed."""
        gathered = {}
        for part, first in self._numbered():
            state = part.state_dict()["state"]
            gathered.update({first + number: moments for number, moments in state.items()})
        return gathered

    def restore(self, moments: Moments) -> None:
        for part, first in self._numbered():
            state = part.state_dict()
            numbers = [number for group in state["param_groups"] for number in group["params"]]
            own = {number: moments[first + number] for number in numbers if first + number in moments}
            part.load_state_dict({**state, "state": own})

    def _numbered(self) -> Iterator[tuple[torch.optim.Optimizer, int]]:
        """The parts, each with the number of its first parameter."""
        first = 0
        for part in self._parts:
            yield part, first
            first += sum(len(group["params"]) for group in part.param_groups)
