"""A run's results on the terminal. Knows only the results."""

from rich.console import Console
from rich.table import Table

from tests.benchmarks.results import Results

WIDTH = 124  # where no terminal has one


def show(results: Results, console: Console) -> None:
    """Prints the run: machine and noise, one table with a section for each cell, then the goals."""
    machine = results.machine
    console.print(f"{machine['device']}, torch {machine['torch']}, {machine['when']}, {machine['clock']}")
    console.print(f"load average before: {machine['load']}")
    console.print("matmul ceiling: " + ", ".join(f"{k} {v:.0f} GFLOP/s" for k, v in results.ceiling.items()))
    console.print(_contestants(results))
    console.print(_goals(results))
    if results.left_out:
        console.print(f"left out, as the time was over: {', '.join(results.left_out)}")


def _contestants(results: Results) -> Table:
    table = Table(title="medians and quartiles; % is of the matmul ceiling", title_justify="left")
    table.add_column("contestant")
    for heading in ("ms a clip", "times authors'", "%", "error"):
        table.add_column(heading, justify="right", no_wrap=True)
    worst: dict[tuple[str, str], float] = {}
    for a in results.agreements:
        worst[a.cell, a.name] = max(a.error, worst.get((a.cell, a.name), 0.0))
    for cell in results.cells:
        table.add_section()
        table.add_row(f"[bold]{cell}", "", f"A/A {results.noise[cell]}", "", "")
        for row in (row for row in results.rows if row.cell == cell):
            share = "" if row.of_ceiling is None else f"{100 * row.of_ceiling:.0f}"
            error = worst.get((cell, row.contestant))
            table.add_row(
                row.contestant,
                format(row.milliseconds, ".1f"),
                str(row.speedup),
                share,
                "" if error is None else f"{error:.1e}",
            )
    return table


def _goals(results: Results) -> Table:
    table = Table(title="goals", title_justify="left")
    for heading in ("cell", "ratio of throughputs", "measured", "goal", ""):
        table.add_column(heading, no_wrap=True)
    for goal in results.goals:
        verdict = "reached" if goal.reached else "missed"
        table.add_row(goal.cell, goal.what, str(goal.ratio), f">= {goal.at_least:g}", verdict)
    return table
