"""What a terminal shows: rows as a table, also in Markdown, and progress."""

from collections.abc import Sequence

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns, for a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def span(ends: Sequence[float] | None, decimals: int = 4) -> str:
    """An interval, empty where there is none."""
    return "" if ends is None else f"{ends[0]:.{decimals}f} to {ends[1]:.{decimals}f}"


def progress_bar(shown: bool = True) -> Progress:
    """A bar whose tasks have a `note`."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.fields[note]}"), disable=not shown)
