"""What a run measures: which cells, how long, on which device. Knows no models."""

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch

from service.model.precision import pick_device
from service.model.spec import ModelType
from tests.benchmarks.geometry import SECONDS, Cell
from tests.benchmarks.timing import Clock

COMPARED = (ModelType.AST, ModelType.WAV2VEC2)  # the architectures of the paper
DEFAULT_SECONDS = (1.28, 5.12)
TASKS = 32  # that the swapping contestants serve, and the most adapters in one batch
CPU_BATCH = 8
CUDA_BATCH = 32
CPU_BATCH_SECONDS = 20.48  # of audio in a batch on a CPU: long inputs come in smaller ones, or a run takes too long
TINY_BATCH = 3
OUTPUT = Path("runs/bench")
BUDGET = 40.0  # seconds of timing in a cell
FULL_BUDGET = 180.0
DEADLINE = 600.0  # seconds that a run takes, but for FULL=1


@dataclass(frozen=True, slots=True)
class Plan:
    """One run of the benchmark.

    Args:
        batch: rows of every call, and adapters in a mixed one.
        counts: different adapters in a batch of the default dtype; more than `batch` make a batch of as many rows.
        batch_seconds: of audio in a batch, at most.
        whole: float32 and int8 run at all of `counts`, not only at `batch`.
        budget: seconds of timing in a cell; `at_least` rounds are timed whatever they take.
        deadline: seconds of the whole run; cells that do not fit are left out.
        slots: of the bank, at least; adapters in use are few of them.
        cpu_time: of the process instead of wall time, which other work on the machine does not lengthen much.
        tiny: backbones of no size, to try the benchmark itself.
        out: directory of what the run leaves.
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
    batch_seconds: float | None = None
    tiny: bool = False
    out: Path = OUTPUT
    deadline: float = math.inf

    def at(self, cell: Cell) -> Self:
        """This plan for one cell, with as many rows as may be in its batches."""
        if self.batch_seconds is None or self.batch * cell.seconds <= self.batch_seconds:
            return self
        rows = round(self.batch_seconds / cell.seconds)
        return replace(self, batch=rows, counts=tuple(rows if count == self.batch else count for count in self.counts))

    @property
    def clock(self) -> Clock:
        return time.process_time if self.cpu_time else time.perf_counter


def read_plan(arguments: Sequence[str] | None = None) -> Plan:
    """The plan that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="The forward beside its peers.")
    parser.add_argument("--full", action="store_true", help="every length, adapter count and dtype")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--model", choices=[kind.value for kind in COMPARED], help="one architecture only")
    parser.add_argument("--seconds", type=float, nargs="+", choices=SECONDS, help="these input lengths only")
    parser.add_argument("--budget", type=float, help="seconds of timing in a cell")
    parser.add_argument("--deadline", type=float, help="seconds of the whole run; 600 unless it is --full")
    parser.add_argument("--slots", type=int, default=1, help="slots of the bank, at least")
    parser.add_argument("--cpu-time", action="store_true", help="CPU instead of wall time, for a busy machine")
    parser.add_argument("--tiny", action="store_true", help="tiny backbones, one length and round: a try")
    parser.add_argument("--out", type=Path, default=OUTPUT, help="directory of the JSON and the plots")
    options = parser.parse_args(arguments)
    device = pick_device(options.device)
    batch = TINY_BATCH if options.tiny else CUDA_BATCH if device.type == "cuda" else CPU_BATCH
    counts = (1, 8, TASKS) if options.full or batch == TASKS else (1, batch)
    lengths = options.seconds or (SECONDS if options.full else DEFAULT_SECONDS[:1] if options.tiny else DEFAULT_SECONDS)
    budget = 0.0 if options.tiny else FULL_BUDGET if options.full else BUDGET
    deadline = (math.inf if options.full else DEADLINE) if options.deadline is None else options.deadline
    kinds = [kind for kind in COMPARED if options.model in (None, kind.value)]
    return Plan(
        device=device,
        cells=tuple(Cell(kind, seconds) for kind in kinds for seconds in lengths),
        batch=batch,
        counts=counts,
        whole=options.full,
        budget=options.budget or budget,
        at_least=1 if options.tiny else 3,
        batch_seconds=None if options.full or device.type == "cuda" else CPU_BATCH_SECONDS,
        tiny=options.tiny,
        out=options.out,
        slots=options.slots,
        cpu_time=options.cpu_time,
        deadline=deadline,
    )
