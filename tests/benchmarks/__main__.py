"""`make bench`: the engine's forward beside its peers', in one run. FULL=1 runs the whole matrix."""

import sys
import time

import torch
from rich.console import Console
from rich.progress import Progress
from transformers import logging

from tests.benchmarks.geometry import Cell, checkpoint
from tests.benchmarks.measure import measure
from tests.benchmarks.plan import Plan, read_plan
from tests.benchmarks.plots import draw
from tests.benchmarks.results import Results, describe_machine, failures, write_json
from tests.benchmarks.table import WIDTH, show


def main() -> int:
    plan = read_plan()
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
    """Measures every cell of the plan; each is printed and in the JSON as soon as it is done."""
    plan.out.mkdir(parents=True, exist_ok=True)
    results = Results(describe_machine(plan.device, plan.cpu_time))
    with Progress(console=console, disable=not console.is_terminal) as progress, torch.inference_mode():
        steps = progress.add_task("measuring", total=len(plan.cells))
        for kind in dict.fromkeys(cell.model_type for cell in plan.cells):
            with checkpoint(kind, plan.tiny) as directory:
                for cell in (cell for cell in plan.cells if cell.model_type is kind):
                    progress.update(steps, description=cell.name)
                    began = time.perf_counter()
                    measure(cell, directory, plan, results)
                    progress.advance(steps)
                    write_json(results, plan.out / "bench.json")
                    line = told(cell, plan, results, time.perf_counter() - began)
                    progress.console.print(line, markup=False, soft_wrap=True)
    return results


def told(cell: Cell, plan: Plan, results: Results, seconds: float) -> str:
    """One line of a cell that is done."""
    found = ", ".join(f"{goal.what} {goal.ratio.median:.2f}" for goal in results.goals if goal.cell == cell.name)
    return f"[{len(results.cells)}/{len(plan.cells)}] {cell.name}: {found} ({seconds:.0f} s)"


if __name__ == "__main__":
    sys.exit(main())
