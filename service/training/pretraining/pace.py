"""Chooses how many threads a step runs on. Knows nothing of what the step does."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

TRIAL_EVERY = 30  # steps
TRIAL_STEPS = 3
MEMORY = 0.7  # of the running mean of a step's time


class Pace:
    """Runs steps on a fixed number of threads, or on one or all cores, whichever is faster at the time.

    On a machine shared with other work, threads that wait for each other at every operation can be several
    times slower than a single one; on a free machine they are nearly twice as fast. So the other choice is
    tried for TRIAL_STEPS of every TRIAL_EVERY.
    """

    def __init__(self, threads: int = 0, choices: tuple[int, int] | None = None) -> None:
        self.fixed = threads
        self.choices = choices or (1, min(8, os.cpu_count() or 1))
        self.best = 0
        self.seconds: list[float | None] = [None, None]
        self.steps = 0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time one step, and choose for the next."""
        if self.fixed:
            torch.set_num_threads(self.fixed)
            yield
            return
        position = self.steps % TRIAL_EVERY
        trial = position >= TRIAL_EVERY - TRIAL_STEPS
        choice = 1 - self.best if trial else self.best
        torch.set_num_threads(self.choices[choice])
        start = time.perf_counter()
        yield
        spent = time.perf_counter() - start
        before = self.seconds[choice]
        self.seconds[choice] = spent if before is None else MEMORY * before + (1 - MEMORY) * spent
        self.steps += 1
        if position == TRIAL_EVERY - 1:
            one, all_cores = self.seconds
            self.best = int(all_cores is not None and one is not None and all_cores < one)
