"""`make bench`: the engine's forward beside its peers', in one run. FULL=1 runs the whole matrix."""

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from transformers import logging

from service.model.spec import ModelType
from tests.benchmarks.geometry import Cell, checkpoint
from tests.benchmarks.measure import measure
from tests.benchmarks.plan import Plan, read_plan
from tests.benchmarks.plots import draw
from tests.benchmarks.results import Results, describe_machine, failures, write_json
from tests.benchmarks.table import WIDTH, show
from tests.benchmarks.timing import OutOfTime, check_time

MEASURING = 0.95  # of a run's time; one call may go on beyond it, and there are the plots to draw


def main(arguments: Sequence[str] | None = None) -> int:
    plan = read_plan(arguments)
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    results = run(plan, console)
    pictures = draw(results, plan.out)
    show(results, console)
    console.print(f"{plan.out / 'bench.json'}, {', '.join(str(path) for path in pictures)}", soft_wrap=True)
    wrong = failures(results.agreements)
    for line in wrong:
        console.print(f"[red]{line}", soft_wrap=True)
    return 1 if wrong else 0


def run(plan: Plan, console: Console) -> Results:
    """Measures every cell of the plan; each is printed and in the JSON as soon as it is done, or left out."""
    plan.out.mkdir(parents=True, exist_ok=True)
    results = Results(describe_machine(plan.device, plan.cpu_time))
    ends, directories = time.monotonic() + MEASURING * plan.deadline, dict[ModelType, Path]()
    with (
        Progress(console=console, disable=not console.is_terminal) as progress,
        torch.inference_mode(),
        ExitStack() as made,
    ):
        steps = progress.add_task("measuring", total=len(plan.cells))
        for number, cell in enumerate(plan.cells):
            progress.update(steps, description=cell.name)
            began, kind = time.monotonic(), cell.model_type
            budget = min(plan.budget, (ends - began) / (len(plan.cells) - number))
            try:
                check_time(ends)
                if kind not in directories:
                    directories[kind] = made.enter_context(checkpoint(kind, plan.tiny))
                measure(cell, directories[kind], replace(plan, budget=budget), results, ends)
            except OutOfTime:
                results.left_out.append(cell.name)
            progress.advance(steps)
            write_json(results, plan.out / "bench.json")
            line = f"[{number + 1}/{len(plan.cells)}] {told(cell, results)} ({time.monotonic() - began:.0f} s)"
            progress.console.print(line, markup=False, soft_wrap=True)
    return results


def told(cell: Cell, results: Results) -> str:
    """What came of a cell, in a line."""
    found = ", ".join(f"{goal.what} {goal.ratio.median:.2f}" for goal in results.goals if goal.cell == cell.name)
    return f"{cell.name}: {found or 'left out, as the time of the run (--deadline) was over'}"


if __name__ == "__main__":
    sys.exit(main())
