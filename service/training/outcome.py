"""What a run leaves beside its bundle, and what others read from there. Knows no audio and trains nothing.

`figures.json` holds what is too long for a bundle's manifest or differs from run to run: time, epochs, the report
part's figures for each class. No server reads it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from service.errors import InvalidBundle
from service.registry.bundle import read_bundle
from service.registry.manifest import Manifest, parse_manifest
from service.training.figures import Measured
from service.training.pictures import can_draw, draw_confusion, draw_det, draw_training
from service.training.recipe import Recipe
from service.training.report import EpochFigures

FIGURES_FILE = "figures.json"


@dataclass(frozen=True, slots=True)
class Headline:
    """The figure that stands for a run: accuracy, mAP or an equal error rate on the report part."""

    figure: str
    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run, as its directory tells it."""

    directory: Path
    manifest: Manifest
    seconds: float | None  # None where only the bundle is there

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The recipe as plain values, empty where the bundle does not say."""
        recipe: Mapping[str, Any] = (self.manifest.training or {}).get("recipe", {})
        return recipe

    @property
    def trainable(self) -> int | None:
        parameters: Mapping[str, int] = (self.manifest.training or {}).get("parameters", {})
        return parameters.get("trainable")

    @property
    def report(self) -> Mapping[str, Any]:
        """Figures of the report part, empty where that was not measured."""
        report: Mapping[str, Any] = (self.manifest.metrics or {}).get("report", {})
        return report

    def headlines(self) -> list[Headline]:
        """One for classes; one for each trial list."""
        if "clips" in self.report:
            figure = "accuracy" if "accuracy" in self.report else "map"
            return [_headline(figure, figure, self.report)]
        return [_headline(f"eer {name}", "eer", figures) for name, figures in self.report.items()]


def _headline(shown: str, figure: str, figures: Mapping[str, Any]) -> Headline:
    interval = figures.get("intervals", {}).get(figure)
    return Headline(shown, figures[figure], None if interval is None else (interval[0], interval[1]))


def read_outcome(directory: Path) -> Outcome:
    """Raises InvalidBundle where the directory holds no bundle."""
    manifest = parse_manifest(read_bundle(directory).config)
    try:
        seconds = json.loads((directory / FIGURES_FILE).read_text())["seconds"]
    except (OSError, ValueError, KeyError, TypeError):
        seconds = None
    return Outcome(directory, manifest, seconds)


def finished(directory: Path, recipe: Recipe) -> Outcome | None:
    """The outcome of just this recipe, its report part measured, if the directory holds it."""
    if not (directory / FIGURES_FILE).is_file():
        return None
    try:
        outcome = read_outcome(directory)
    except InvalidBundle:  # the run ended between its figures and its bundle
        return None
    try:
        same = Recipe.model_validate(outcome.recipe) == recipe  # also where a newer recipe knows more keys
    except ValidationError:
        return None
    return outcome if same and outcome.report else None


def leave_pictures(
    out: Path, epochs: Sequence[EpochFigures], figure: str, chosen: int, report: Measured
) -> tuple[str, ...] | None:
    """Draw what there is to see; names of the PNGs, or None where nothing can be drawn here."""
    if not can_draw():
        return None
    drawn = []
    if epochs:
        draw_training(out / "training.png", epochs, figure, chosen)
        drawn.append("training.png")
    if "confusion" in report.detail:
        confusion = report.detail["confusion"]
        draw_confusion(out / "confusion.png", confusion["counts"], confusion["labels"])
        drawn.append("confusion.png")
    if report.trials:
        draw_det(out / "det.png", report.trials)
        drawn.append("det.png")
    return tuple(drawn)


def leave_figures(
    out: Path, epochs: Sequence[EpochFigures], figure: str, chosen: int, report: Measured, seconds: float
) -> None:
    """Write `figures.json`."""
    told = {
        "seconds": round(seconds, 1),
        "selection_figure": figure,
        "chosen_epoch": chosen,
        "epochs": [asdict(each) for each in epochs],
        "report": {**report.figures, **report.detail},
    }
    (out / FIGURES_FILE).write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
