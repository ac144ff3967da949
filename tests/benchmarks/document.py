"""Puts a run into docs/PERFORMANCE.md, between the marks of its kind of device. Knows only the results.

`python -m tests.benchmarks.document [runs/bench/bench.json]`
"""

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.benchmarks.results import Results, read_json

DOCUMENT = Path("docs/PERFORMANCE.md")
_BUSY = 0.7  # load average from which on other work disturbed the run


def main() -> int:
    results = read_json(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/bench/bench.json"))
    DOCUMENT.write_text(with_results(DOCUMENT.read_text(), results))
    return 0


def with_results(text: str, results: Results) -> str:
    """The document with this run in place of the last one. Raises ValueError where the device has no marks."""
    return between(text, f"bench {results.machine['type']}", "end of bench", lines(results))


def between(text: str, begin: str, end: str, body: Iterable[str]) -> str:
    """The text with `body` between two comments. Raises ValueError where it does not have them."""
    marks = re.compile(f"(<!-- {begin} -->\n).*?(<!-- {end} -->)", flags=re.DOTALL)
    if not marks.search(text):
        raise ValueError(f"the document has no place for this: mark one as <!-- {begin} -->, <!-- {end} -->")
    filling = "\n".join(body)
    return marks.sub(lambda found: f"{found[1]}{filling}\n{found[2]}", text)


def lines(results: Results) -> Iterator[str]:
    """The run in Markdown: its machine, goals, then every contestant."""
    machine = results.machine
    busy = float(machine["load"]) > _BUSY and machine["type"] == "cpu"
    yield f"{machine['device']}, torch {machine['torch']}, {machine['when']}, {machine['clock']}."
    ceiling = ", ".join(f"{rate:,.0f} GFLOP/s in {dtype}" for dtype, rate in results.ceiling.items())
    yield f"Measured matmul ceiling: {ceiling}. Medians with quartiles; ratios are taken round by round."
    if results.left_out:
        yield f"There was no time for {', '.join(results.left_out)}."
    if busy:
        yield f"**Other work ran on this machine (load {machine['load']}): read ratios, not milliseconds.**"
    yield from ("", "| input | ratio of throughputs | measured | to reach | |", "|---|---|---|---|---|")
    for goal in results.goals:
        verdict = "reached" if goal.reached else "missed"
        yield f"| {goal.cell} | {goal.what} | {goal.ratio} | {goal.at_least:g} | {verdict} |"
    for cell in results.cells:
        yield from ("", f"**{cell}** (a contestant against itself: {results.noise[cell]})", "")
        yield "| contestant | ms a clip | times the authors' form | of the matmul ceiling |"
        yield "|---|---|---|---|"
        for row in (row for row in results.rows if row.cell == cell):
            share = "" if row.of_ceiling is None else f"{100 * row.of_ceiling:.0f} %"
            yield f"| {row.contestant} | {row.milliseconds:.1f} | {row.speedup} | {share} |"


if __name__ == "__main__":
    sys.exit(main())
