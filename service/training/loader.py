"""Examples of coming steps, made ahead in threads, and the frozen front end's part of a step.

What an example holds follows from seed, clip and draw alone, so the number of workers changes nothing but the time. No
adapter touches the front end, so its output for a fixed example never changes: with `augment.views` set, each clip has
so many augmented views, each goes through the front end once, and epochs take turns over them.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from service.model.backbone import Backbone
from service.training.batches import Batches, Made, Pick, Wanted

MOST_WORKERS = 8
KEPT_DTYPE = torch.float16  # of hidden states in memory, which a layer norm has just scaled, or normalised inputs
AHEAD = 2  # steps that each worker makes in advance


def default_workers() -> int:
    """One thread for each core but one, which trains."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, cores - 1)


class Loader:
    """Makes the examples of steps, in order."""

    def __init__(self, batches: Batches, workers: int = 0) -> None:
        self._batches = batches
        self._workers = workers

    def __call__(self, steps: Sequence[Sequence[Pick]]) -> Iterator[Made]:
        """The examples of each step; files that cannot be read any more are left out and remembered as faults."""
        for made in self._ahead(steps) if self._workers else map(self._batches.examples, steps):
            for span, reason in made.faults:
                self._batches.recordings.leave_out(span, reason)
            yield made

    def _ahead(self, steps: Sequence[Sequence[Pick]]) -> Iterator[Made]:
        with ThreadPoolExecutor(self._workers) as pool:
            coming: deque[Future[Made]] = deque()
            for step in steps:
                coming.append(pool.submit(self._batches.examples, step))
                if len(coming) > AHEAD * self._workers:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()


class FrontEnd:
    """What the trained part reads, for the examples of a training run.

    Args:
        keep: whether examples come round again and are worth keeping.
        bypass: whether to give inputs `[B, ...]` instead of hidden states `[B, T, D]`.
    """

    def __init__(self, backbone: Backbone, loader: Loader, *, keep: bool, bypass: bool) -> None:
        self._backbone = backbone
        self._loader = loader
        self._keep = keep
        self._bypass = bypass
        self._kept: dict[Pick, tuple[Tensor, Wanted]] = {}

    def __call__(self, steps: Sequence[Sequence[Pick]]) -> Iterator[tuple[Tensor, list[Wanted]]]:
        """What each step's readable examples are, float32 on the backbone's device, and what they should give."""
        missing = [[pick for pick in dict.fromkeys(picks) if pick not in self._kept] for picks in steps]
        for picks, made in zip(steps, self._loader(missing), strict=True):
            yield self._step(picks, made)

    def _step(self, picks: Sequence[Pick], made: Made) -> tuple[Tensor, list[Wanted]]:
        states = self._embed(made.inputs) if len(made.picks) else made.inputs
        if not self._keep:
            return states, list(made.wanted)
        fresh = zip(states.to(KEPT_DTYPE).unbind(), made.wanted, strict=True)
        self._kept.update(zip(made.picks, fresh, strict=True))
        found = [self._kept[pick] for pick in picks if pick in self._kept]
        if not found:
            return states, []
        return torch.stack([state for state, _ in found]).float(), [wanted for _, wanted in found]

    @torch.no_grad()
    def _embed(self, inputs: Tensor) -> Tensor:
        inputs = inputs.to(self._backbone.device)
        return inputs if self._bypass else self._backbone.embed(inputs)
