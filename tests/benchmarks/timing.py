"""Fair timing: contestants take turns, the order alternates, medians stand with their spread. Knows no models."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from service.model.kernels import pick_kernels
from service.model.layers import Linear

Clock = Callable[[], float]
T = TypeVar("T")


class OutOfTime(Exception):
    """The run's deadline has come: the cell that is being measured is left out."""


def check_time(ends: float) -> None:
    """Raises OutOfTime from `ends` on, on the clock of `time.monotonic`."""
    if time.monotonic() >= ends:
        raise OutOfTime


def in_time(run: Callable[[], T], ends: float) -> Callable[[], T]:
    """`run`, which raises OutOfTime instead from `ends` on."""

    def checked() -> T:
        check_time(ends)
        return run()

    return checked


@dataclass(frozen=True, slots=True)
class Spread:
    """A median and its quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        low, median, high = (float(q) for q in np.quantile(values, (0.25, 0.5, 0.75)))
        return cls(median, low, high)

    def __format__(self, form: str = "") -> str:
        form = form or ".2f"
        return f"{self.median:{form}} [{self.low:{form}}, {self.high:{form}}]"

    __str__ = __format__


def take_turns(
    runs: Mapping[str, Callable[[], object]],
    seconds: float,
    at_least: int = 3,
    at_most: int = 30,
    clock: Clock = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every call by `clock`: rounds in which each runs once, forwards and backwards by turns.

    Each round begins with another contestant, so that none always runs where the direction turns. Rounds go on for
    about `seconds`, but `at_least` and `at_most` so many. What runs here has run before, so that nothing warms up.
    """
    names = list(runs)
    taken: dict[str, list[float]] = {name: [] for name in names}
    began = time.perf_counter()
    for i in range(at_most):
        if i >= at_least and (time.perf_counter() - began) * (i + 1) / i > seconds:
            break
        start = i * (len(names) // 3 + 1) % len(names)
        turned = names[start:] + names[:start]
        for name in turned if i % 2 == 0 else reversed(turned):
            taken[name].append(_seconds(runs[name], clock))
    return taken


def ratios(slow: Sequence[float], fast: Sequence[float]) -> Spread:
    """How many times faster, by round: what slows a whole round down cancels out."""
    return Spread.of([a / b for a, b in zip(slow, fast, strict=True)])


def matmul_gflops(device: torch.device, dtype: torch.dtype, rows: int, clock: Clock = time.perf_counter) -> float:
    """The best rate of a base-size backbone's largest product, `[rows, 768] x [768, 3072]`: the ceiling of a forward.

    As the engine multiplies, with weights prepacked where that is faster.
    """
    x = torch.randn(rows, 768, device=device, dtype=dtype)
    weight = torch.randn(3072, 768, device=device, dtype=dtype)
    product = pick_kernels(device, dtype).linear(Linear(weight, None))
    best = min(_seconds(lambda: product(x), clock) for _ in range(20))
    return 2 * rows * 768 * 3072 / best / 1e9


def _seconds(run: Callable[[], object], clock: Clock) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = clock()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - began
