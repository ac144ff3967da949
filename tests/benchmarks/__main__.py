"""`make bench`: the engine's forward beside its peers', in one run. FULL=1 runs the whole matrix."""

import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from transformers import logging

from service.model.spec import ModelType
from tests.benchmarks.geometry import base_size_checkpoint
from tests.benchmarks.measure import measure
from tests.benchmarks.plan import Plan, read_plan
from tests.benchmarks.plots import draw
from tests.benchmarks.results import Results, describe_machine, failures, write_json
from tests.benchmarks.table import WIDTH, show

OUTPUT = Path("runs/bench")


def main() -> int:
    plan = read_plan()
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    results = run(plan, console)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    write_json(results, OUTPUT / "bench.json")
    pictures = draw(results, OUTPUT)
    show(results, console)
    console.print(f"{OUTPUT / 'bench.json'}, {', '.join(str(path) for path in pictures)}", soft_wrap=True)
    wrong = failures(results.agreements)
    for line in wrong:
        console.print(f"[red]{line}", soft_wrap=True)
    return 1 if wrong else 0


def run(plan: Plan, console: Console) -> Results:
    """Measures every cell of the plan."""
    results = Results(describe_machine(plan.device, plan.cpu_time))
    with Progress(console=console) as progress, torch.inference_mode():
        steps = progress.add_task("measuring", total=len(plan.cells))
        for kind in ModelType:
            with base_size_checkpoint(kind) as directory:
                for cell in (cell for cell in plan.cells if cell.model_type is kind):
                    progress.update(steps, description=cell.name)
                    measure(cell, directory, plan, results)
                    progress.advance(steps)
    return results


if __name__ == "__main__":
    sys.exit(main())
