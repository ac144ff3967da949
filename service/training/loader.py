"""Examples of coming steps, made ahead in worker processes. Knows no models.

What an example holds follows from seed, clip and draw alone, so the number of workers changes nothing but the time.
Workers are forked and see the recordings that are already decoded.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset

from service.training.batches import Batches, Made, Pick

MOST_WORKERS = 8
AHEAD = 2  # steps that each worker makes in advance


def default_workers() -> int:
    """One process for each core but one, which trains."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, cores - 1)


class _Steps(Dataset[Made]):
    def __init__(self, batches: Batches, steps: Sequence[Sequence[Pick]]) -> None:
        self._batches = batches
        self._steps = steps

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, step: int) -> Made:
        return self._batches.examples(self._steps[step])


def _as_it_is(made: Any) -> Any:
    return made


class Loader:
    """Makes the examples of steps, in order."""

    def __init__(self, batches: Batches, workers: int = 0) -> None:
        self._batches = batches
        self._workers = workers

    def __call__(self, steps: Sequence[Sequence[Pick]]) -> Iterator[Made]:
        """The examples of each step; files that cannot be read any more are left out and remembered as faults."""
        made: Iterator[Made]
        if self._workers and any(steps):
            made = iter(
                DataLoader(
                    _Steps(self._batches, steps),
                    batch_size=None,
                    num_workers=self._workers,
                    prefetch_factor=AHEAD,
                    collate_fn=_as_it_is,
                )
            )
        else:
            made = map(self._batches.examples, steps)
        for each in made:
            for path, reason in each.faults:
                self._batches.recordings.leave_out(path, reason)
            yield each
