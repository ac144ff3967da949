"""The page that `ipet reproduce` writes: what was compared, how, and what came of it. Plain text out, no files."""

from collections.abc import Mapping, Sequence

from service.training.comparison import Entry, markdown_overview, markdown_table

_SMALL = """\
Each cell is one run of a recipe in `adapters/recipes/small/`: minutes of training, so the figures rank methods under
this budget and are not those of the bundles that ship. Every method of a task has the same epochs, batches, windows,
views and augmentation, on the same training part; `full` has a lower learning rate, which its recipe names."""
_PAPER = """\
Each cell is one run of a recipe in `adapters/recipes/paper/`; ESC-50 has one for each fold. The authors' own figures
stand in the tables of arXiv:2211.02227."""
_HOW = """\
Epochs, thresholds and calibration are chosen on a part held out of training; the report part is read once, at the end.
Behind a value stands its 95 % interval, a percentile bootstrap over the report part's clips or speakers; of several
runs (seeds, folds) value and interval are means, and ± is the standard deviation of the values. `trainable` counts
everything that learns, a classifier over training speakers included. `seconds` are of one run, from the first
recording read to the last figure; methods of a task share decoded recordings, which the first of them reads."""


def comparison_page(
    command: str, paper: bool, entries: Sequence[Entry], missing: Mapping[str, str], threads: int, picture: str | None
) -> str:
    """Markdown.

    Args:
        command: what wrote it.
        missing: cells that were left out, with the reason.
        picture: a file beside the page.
    """
    sections = ["# Comparison", f"Written by `{command}`, on {threads} processor threads."]
    sections += [_PAPER if paper else _SMALL, _HOW]
    if entries:
        sections += ["## Overview", markdown_overview(entries)]
        sections += [f"![Figures with their intervals]({picture})"] if picture else []
        sections += ["## Runs", markdown_table(entries)]
    if missing:
        sections += ["## Left out", "\n".join(f"- {cell}: {reason}" for cell, reason in missing.items())]
    return "\n\n".join(sections) + "\n"
