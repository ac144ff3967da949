"""A picture of each cell. Knows only the results."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from tests.benchmarks.contestants import ENGINE
from tests.benchmarks.results import Results


def draw(results: Results, directory: Path) -> list[Path]:
    """Milliseconds a clip of every contestant, quartiles as whiskers; one PNG for each cell."""
    paths = []
    for cell in results.cells:
        rows = [row for row in results.rows if row.cell == cell][::-1]
        medians = [row.milliseconds.median for row in rows]
        low = [row.milliseconds.median - row.milliseconds.low for row in rows]
        high = [row.milliseconds.high - row.milliseconds.median for row in rows]
        figure, axes = plt.subplots(figsize=(9, 0.4 * len(rows) + 1.4), layout="constrained")
        colours = ["tab:blue" if row.contestant.startswith(ENGINE) else "tab:gray" for row in rows]
        axes.barh([row.contestant for row in rows], medians, xerr=(low, high), color=colours, capsize=3)
        axes.set_xlabel("milliseconds a clip (median, quartiles)")
        axes.set_title(f"{cell}, {results.machine['device']}", fontsize=10)
        path = directory / f"{cell.replace(' ', '-').lower()}.png"
        figure.savefig(path, dpi=120)
        plt.close(figure)
        paths.append(path)
    return paths
