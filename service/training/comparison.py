"""Runs side by side: one table and one plot of what they reached. Knows finished runs, trains nothing."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from service.model.spec import ModelType
from service.registry.manifest import CONFIG_FILE
from service.training.outcome import Headline, Outcome, read_outcome
from service.training.pictures import Interval, can_draw, draw_comparison

ARCHITECTURES = {ModelType.AST: "AST", ModelType.WAV2VEC2: "wav2vec 2.0"}
_FOLDS = ("train_folds", "selection_fold", "report_fold")
_COLUMNS = ("task", "figure", "backbone", "method", "trainable", "value", "95 % interval", "runs", "seconds")


@dataclass(frozen=True, slots=True)
class Entry:
    """One figure of the runs that differ in nothing but their seed or fold.

    Args:
        values: of the single runs.
        interval: 95 % bootstrap interval, the mean of the runs' ends.
        trainable: parameters that learn.
        seconds: of one run, on average.
    """

    task: str
    figure: str
    backbone: str
    method: str
    runs: tuple[str, ...]
    values: tuple[float, ...]
    interval: tuple[float, float] | None
    trainable: int | None
    seconds: float | None

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def spread(self) -> float | None:
        """Standard deviation over the runs; None of a single one."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def shown(self) -> str:
        return f"{self.mean:.3f}" if self.spread is None else f"{self.mean:.3f} ± {self.spread:.3f}"


def find_outcomes(directories: Iterable[Path]) -> list[Outcome]:
    """The runs in directories: each is one itself, or holds some.

    Raises:
        FileNotFoundError: there is no run in one of them.
        InvalidBundle: one of them cannot be read.
    """
    found = []
    for directory in directories:
        runs = sorted(path.parent for path in directory.rglob(CONFIG_FILE))
        if not runs:
            raise FileNotFoundError(f"{directory} holds no run: expected {CONFIG_FILE} in it or in a folder below")
        found += [read_outcome(run) for run in runs]
    return found


def compare(outcomes: Iterable[Outcome]) -> list[Entry]:
    """An entry for each figure of each kind of run, in order of the task's first run."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(_kind(outcome), []).append(outcome)
    entries = [entry for group in groups.values() for entry in _entries(group)]
    order = list(dict.fromkeys((entry.task, entry.figure) for entry in entries))
    tasks = list(dict.fromkeys(entry.task for entry in entries))
    return sorted(entries, key=lambda e: (tasks.index(e.task), order.index((e.task, e.figure))))


def markdown_table(entries: Sequence[Entry]) -> str:
    """A line for each entry."""
    rows = [
        (
            entry.task,
            entry.figure,
            entry.backbone,
            entry.method,
            "" if entry.trainable is None else f"{entry.trainable:,}",
            entry.shown,
            _span(entry.interval),
            ", ".join(entry.runs) if len(entry.runs) < 3 else f"{entry.runs[0]} and {len(entry.runs) - 1} more",
            "" if entry.seconds is None else f"{entry.seconds:,.0f}",
        )
        for entry in entries
    ]
    return _markdown(_COLUMNS, rows)


def markdown_overview(entries: Sequence[Entry]) -> str:
    """Methods in rows and tasks in columns, a table for each backbone."""
    sections = []
    for backbone in dict.fromkeys(entry.backbone for entry in entries):
        mine = [entry for entry in entries if entry.backbone == backbone]
        columns = list(dict.fromkeys((entry.task, entry.figure) for entry in mine))
        cells = {(entry.method, entry.task, entry.figure): entry for entry in mine}
        rows = []
        for method in dict.fromkeys(entry.method for entry in mine):
            found = [cells.get((method, *column)) for column in columns]
            rows.append((method, *("" if one is None else _brief(one) for one in found)))
        header = ("method", *(f"{task} {figure}" for task, figure in columns))
        sections.append(f"### {backbone}\n\n{_markdown(header, rows)}")
    return "\n\n".join(sections)


def as_json(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """What the table shows, and the values of the single runs."""
    return [asdict(entry) | {"mean": entry.mean, "spread": entry.spread} for entry in entries]


def draw(path: Path, entries: Sequence[Entry]) -> None:
    """A panel for each task and figure, a line for each kind of run. Raises RuntimeError without matplotlib."""
    if not can_draw():
        raise RuntimeError("nothing to draw with: pip install matplotlib brings matplotlib")
    panels: dict[str, dict[str, Interval]] = {}
    for entry in entries:
        panel = panels.setdefault(f"{entry.task}: {entry.figure}", {})
        name = f"{entry.method}, {entry.backbone}"
        if name in panel:
            name = f"{name}, {entry.runs[0]}"
        panel[name] = (entry.mean, *(entry.interval or (entry.mean, entry.mean)))
    draw_comparison(path, panels)


def _kind(outcome: Outcome) -> str:
    """What runs have in common that differ in nothing but seed or fold."""
    recipe = {key: value for key, value in outcome.recipe.items() if key != "seed"}
    if not recipe:
        return str(outcome.directory)
    recipe["data"] = {key: value for key, value in recipe["data"].items() if key not in _FOLDS}
    return json.dumps([recipe, outcome.manifest.backbone.model_type.value], sort_keys=True)


def _entries(group: Sequence[Outcome]) -> list[Entry]:
    first = group[0]
    seconds = [each.seconds for each in group if each.seconds is not None]
    headlines: dict[str, list[Headline]] = {}
    for outcome in group:
        for headline in outcome.headlines():
            headlines.setdefault(headline.figure, []).append(headline)
    return [
        Entry(
            task=first.manifest.name,
            figure=figure,
            backbone=_backbone(first),
            method=first.recipe.get("method", ""),
            runs=tuple(each.directory.name for each in group),
            values=tuple(headline.value for headline in found),
            interval=_mean_interval([headline.interval for headline in found]),
            trainable=first.trainable,
            seconds=fmean(seconds) if seconds else None,
        )
        for figure, found in headlines.items()
    ]


def _backbone(outcome: Outcome) -> str:
    """Its own name, without where it lay, and its architecture."""
    name = outcome.recipe.get("backbone", outcome.manifest.base_model_name_or_path)
    return f"{Path(name).name} ({ARCHITECTURES[outcome.manifest.backbone.model_type]})"


def _mean_interval(intervals: Sequence[tuple[float, float] | None]) -> tuple[float, float] | None:
    known = [interval for interval in intervals if interval is not None]
    if not known:
        return None
    return fmean(low for low, _ in known), fmean(high for _, high in known)


def _brief(entry: Entry) -> str:
    return entry.shown if entry.interval is None else f"{entry.shown} ({_span(entry.interval)})"


def _span(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
