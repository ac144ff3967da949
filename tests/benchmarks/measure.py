"""One cell of the matrix: outputs compared, then everyone timed, then the goals. Knows no tables."""

import math
from dataclasses import replace
from pathlib import Path

import torch

from service.model.spec import ModelType
from tests.benchmarks.agreement import compare
from tests.benchmarks.contestants import AUTHORS, BARE, ENGINE, REQUESTS, SWAP_EACH, Contestant, Field, contestants
from tests.benchmarks.geometry import Cell, bare_flops
from tests.benchmarks.plan import Plan
from tests.benchmarks.results import Goal, Results, Row
from tests.benchmarks.timing import Spread, in_time, matmul_gflops, ratios, take_turns

CEILING_ROWS = 1168  # of the product that measures the ceiling: 8 clips of AST at 1.28 s
CUDA_CEILING_ROWS = 16384
TINY_CEILING_ROWS = 16  # of a try, whose figures say nothing
NOISE_SECONDS = 5.0

# Times the authors' form on a CPU.
_AUTHORS_GOALS = {
    ModelType.AST: {1.28: 3.5, 5.12: 3.0},
    ModelType.WAV2VEC2: {1.28: 5.0, 3.0: 4.0},
}
_MIXED_GOAL = 0.97  # of the throughput of one adapter in the batch
_BARE_GOAL = 0.90  # of the throughput of the bare backbone
_SWAP_GOAL = 20.0  # times swapping for each request, on a GPU


def measure(cell: Cell, directory: Path, plan: Plan, results: Results, ends: float = math.inf) -> None:
    """Compares, then times, the contestants of one cell, and adds what was found to `results`.

    Args:
        ends: when no contestant is made or run any more, on the clock of `time.monotonic`.

    Raises:
        OutOfTime: it came before the cell was done, of which `results` then hold nothing.
    """
    plan = plan.at(cell)
    field = Field.of(cell, directory, plan, ends)
    made, entries = contestants(field), list[Contestant]()
    while (entry := in_time(lambda: next(made, None), ends)()) is not None:
        entries.append(replace(entry, run=in_time(entry.run, ends)))
    agreements = compare(cell.name, entries)
    rows = TINY_CEILING_ROWS if plan.tiny else CUDA_CEILING_ROWS if plan.device.type == "cuda" else CEILING_ROWS
    for dtype in field.dtypes:
        if dtype not in results.ceiling:
            results.ceiling[dtype] = matmul_gflops(plan.device, getattr(torch, dtype), rows, plan.clock)
    twin = next(entry for entry in entries if entry.form == ENGINE and entry.adapters == plan.batch)
    pair = {"first": twin.run, "second": twin.run}
    noise = take_turns(pair, min(NOISE_SECONDS, plan.budget), plan.at_least, clock=plan.clock)
    taken = take_turns({e.name: e.run for e in entries}, plan.budget, plan.at_least, clock=plan.clock)
    times = {e.name: [seconds / e.clips for seconds in taken[e.name]] for e in entries}
    results.agreements.extend(agreements)
    results.noise[cell.name] = ratios(noise["first"], noise["second"])
    authors, gflop = times[entries[0].name], bare_flops(cell, directory) / 1e9
    for entry in entries:
        spread = Spread.of([1e3 * seconds for seconds in times[entry.name]])
        ceiling = results.ceiling.get(entry.dtype)
        share = None if ceiling is None else gflop / (1e-3 * spread.median) / ceiling
        results.rows.append(Row(cell.name, entry.name, spread, ratios(authors, times[entry.name]), share))
    results.goals.extend(goals(cell, entries, times, field))


def goals(cell: Cell, entries: list[Contestant], times: dict[str, list[float]], field: Field) -> list[Goal]:
    """The engine in its default dtype, with a different adapter in each row, against what it is to reach."""

    def of(form: str, dtype: str, adapters: int | None = None) -> list[float]:
        found = (e for e in entries if (e.form, e.dtype) == (form, dtype) and adapters in (None, e.adapters))
        return times[next(found).name]

    dtype, batch = field.dtype, field.plan.batch
    mixed = of(ENGINE, dtype, batch)
    found = [
        Goal(cell.name, "mixed : one adapter", ratios(of(ENGINE, dtype, 1), mixed), _MIXED_GOAL),
        Goal(cell.name, "mixed : bare backbone", ratios(of(BARE, dtype), mixed), _BARE_GOAL),
    ]
    if field.plan.device.type == "cuda":
        ratio = ratios(of(SWAP_EACH, "float32"), of(REQUESTS, dtype))
        found.append(Goal(cell.name, "mixed : swap a request", ratio, _SWAP_GOAL))
    elif (wanted := _AUTHORS_GOALS[cell.model_type].get(cell.seconds)) is not None:
        found.append(Goal(cell.name, "mixed : authors' form", ratios(of(AUTHORS, "float32"), mixed), wanted))
    return found
