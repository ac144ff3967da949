"""Finished runs side by side: one table of what they reached."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from service.model.spec import ModelType
from service.registry.manifest import CONFIG_FILE
from service.training.outcome import Headline, Outcome, read_outcome
from service.training.tables import markdown, span

ARCHITECTURES = {ModelType.AST: "AST", ModelType.WAV2VEC2: "wav2vec 2.0"}
_COLUMNS = ("task", "figure", "backbone", "method", "trainable", "value", "95 % interval", "runs", "seconds")


@dataclass(frozen=True, slots=True)
class Entry:
    """One figure of the runs that differ in nothing but their seed or fold."""

    task: str
    figure: str
    backbone: str
    method: str
    runs: tuple[str, ...]
    values: tuple[float, ...]  # of the single runs
    mean: float
    spread: float | None  # their standard deviation; None of a single one
    interval: tuple[float, float] | None  # 95 % bootstrap interval, the mean of the runs' ends
    trainable: int | None  # parameters that learn
    seconds: float | None  # of one run, on average

    def cells(self) -> tuple[str, ...]:
        """As the table shows it."""
        return (
            *(self.task, self.figure, self.backbone, self.method),
            "" if self.trainable is None else f"{self.trainable:,}",
            f"{self.mean:.3f}" if self.spread is None else f"{self.mean:.3f} ± {self.spread:.3f}",
            span(self.interval, 3),
            ", ".join(self.runs) if len(self.runs) < 3 else f"{self.runs[0]} and {len(self.runs) - 1} more",
            "" if self.seconds is None else f"{self.seconds:,.0f}",
        )


def find_outcomes(directories: Iterable[Path]) -> list[Outcome]:
    """The runs in directories: each is one itself, or holds some.

    Raises FileNotFoundError: there is no run in one of them; InvalidBundle: one of them cannot be read.
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
    return "\n".join(markdown(_COLUMNS, [entry.cells() for entry in entries]))


def _kind(outcome: Outcome) -> str:
    """What runs have in common that differ in nothing but seed or fold."""
    recipe = {key: value for key, value in outcome.recipe.items() if key != "seed"}
    if not recipe:
        return str(outcome.directory)
    recipe["data"] = {key: value for key, value in recipe["data"].items() if key != "parts"}
    return json.dumps([recipe, outcome.data, outcome.manifest.backbone.model_type.value], sort_keys=True)


def _entries(group: Sequence[Outcome]) -> list[Entry]:
    first = group[0]
    seconds = [each.seconds for each in group if each.seconds is not None]
    name = Path(first.recipe.get("backbone", first.manifest.base_model_name_or_path)).name  # not where it lay
    headlines: dict[str, list[Headline]] = {}
    for headline in (headline for outcome in group for headline in outcome.headlines()):
        headlines.setdefault(headline.figure, []).append(headline)
    entries = []
    for figure, found in headlines.items():
        values = tuple(headline.value for headline in found)
        ends = [headline.interval for headline in found if headline.interval is not None]
        entries.append(
            Entry(
                task=first.manifest.name,
                figure=figure,
                backbone=f"{name} ({ARCHITECTURES[first.manifest.backbone.model_type]})",
                method=first.recipe.get("method", ""),
                runs=tuple(each.directory.name for each in group),
                values=values,
                mean=fmean(values),
                spread=stdev(values) if len(values) > 1 else None,
                interval=(fmean(low for low, _ in ends), fmean(high for _, high in ends)) if ends else None,
                trainable=first.parameters.get("trainable"),
                seconds=fmean(seconds) if seconds else None,
            )
        )
    return entries
