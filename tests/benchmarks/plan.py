"""What a run measures: which cells, how long, on which device. Knows no models."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from service.model.precision import pick_device
from service.model.spec import ModelType
from tests.benchmarks.geometry import SECONDS, Cell
from tests.benchmarks.timing import Clock

DEFAULT_SECONDS = (1.28, 5.12)
TASKS = 32  # that the swapping contestants serve, and the most adapters in one batch
CPU_BATCH = 8
CUDA_BATCH = 32
BUDGET = 40.0  # seconds of timing in a cell
FULL_BUDGET = 180.0


@dataclass(frozen=True, slots=True)
class Plan:
    """One run of the benchmark.

    Args:
        batch: rows of every call, and adapters in a mixed one.
        counts: different adapters in a batch of the default dtype; more than `batch` make a batch of as many rows.
        whole: float32 and int8 run at all of `counts`, not only at `batch`.
        budget: seconds of timing in a cell; `at_least` rounds are timed whatever they take.
        slots: of the bank, at least; adapters in use are few of them.
        cpu_time: of the process instead of wall time, which other work on the machine does not lengthen much.
    """

    device: torch.device
    cells: tuple[Cell, ...]
    batch: int
    counts: tuple[int, ...]
    whole: bool
    budget: float
    at_least: int = 3
    slots: int = 1
    cpu_time: bool = False

    @property
    def clock(self) -> Clock:
        return time.process_time if self.cpu_time else time.perf_counter


def read_plan(arguments: Sequence[str] | None = None) -> Plan:
    """The plan that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="The forward beside its peers.")
    parser.add_argument("--full", action="store_true", help="every length, adapter count and dtype")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--model", choices=[kind.value for kind in ModelType], help="one architecture only")
    parser.add_argument("--seconds", type=float, nargs="+", choices=SECONDS, help="these input lengths only")
    parser.add_argument("--budget", type=float, help="seconds of timing in a cell")
    parser.add_argument("--slots", type=int, default=1, help="slots of the bank, at least")
    parser.add_argument("--cpu-time", action="store_true", help="CPU instead of wall time, for a busy machine")
    options = parser.parse_args(arguments)
    device = pick_device(options.device)
    batch = CUDA_BATCH if device.type == "cuda" else CPU_BATCH
    counts = (1, 8, TASKS) if options.full or batch == TASKS else (1, batch)
    lengths = options.seconds or (SECONDS if options.full else DEFAULT_SECONDS)
    kinds = [kind for kind in ModelType if options.model in (None, kind.value)]
    return Plan(
        device=device,
        cells=tuple(Cell(kind, seconds) for kind in kinds for seconds in lengths),
        batch=batch,
        counts=counts,
        whole=options.full,
        budget=options.budget or (FULL_BUDGET if options.full else BUDGET),
        slots=options.slots,
        cpu_time=options.cpu_time,
    )
