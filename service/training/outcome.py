"""What a run leaves beside its bundle, and what others read from there.

`figures.json` holds what is too long for a bundle's manifest or differs from run to run: time, the report part's
figures for each class. No server reads it.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.errors import InvalidBundle
from service.registry.bundle import CARD_FILE, WEIGHTS_FILE, read_bundle
from service.registry.manifest import CONFIG_FILE, Manifest, parse_manifest
from service.training.checkpoint import CHECKPOINT, EPOCHS_FILE, BadCheckpoint, Progress
from service.training.export import BACKBONE_FOLDER
from service.training.figures import Measured
from service.training.pictures import can_draw, draw_confusion, draw_det, draw_training

FIGURES_FILE = "figures.json"
BOARD_FOLDER = "tensorboard"
PICTURES = ("training.png", "confusion.png", "det.png")


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
    seconds: float | None = None  # None where only the bundle is there
    run: str | None = None  # digest of what decided it
    data: str | None = None  # digest of the clips of all its parts
    chosen_epoch: int = 0
    skipped: int = 0  # clips that could not be read; 0 where it is read again
    again: bool = False  # whether it was finished before, so that nothing was done

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The recipe as plain values, empty where the bundle does not say."""
        recipe: Mapping[str, Any] = (self.manifest.training or {}).get("recipe", {})
        return recipe

    @property
    def parameters(self) -> Mapping[str, int]:
        """Counts by part, empty where the bundle does not say."""
        parameters: Mapping[str, int] = (self.manifest.training or {}).get("parameters", {})
        return parameters

    @property
    def metrics(self) -> dict[str, Any]:
        return dict(self.manifest.metrics or {})

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
        told = json.loads((directory / FIGURES_FILE).read_text())
        return Outcome(
            directory, manifest, told["seconds"], told.get("run"), told.get("data"), chosen_epoch=told["chosen_epoch"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return Outcome(directory, manifest)


def finished(directory: Path, run: str, report: bool) -> Outcome | None:
    """The outcome of just this run, its report part measured if need be, where the directory holds it.

    Raises BadCheckpoint: it holds a finished run of another recipe, data set or backbone.
    """
    try:
        outcome = read_outcome(directory)
    except InvalidBundle:  # none, or one that ended between its figures and its bundle
        return None
    if outcome.run != run:
        raise BadCheckpoint(
            f"{directory} holds a finished run of another recipe, data set or backbone; "
            "write elsewhere, or start anew in its place (--fresh)"
        )
    return outcome if outcome.report or not report else None


def clear(directory: Path) -> None:
    """Remove what a run has left in a directory, so that nothing of it passes for the next one's."""
    if not any((directory / name).exists() for name in (CONFIG_FILE, CHECKPOINT)):
        return
    for name in (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, FIGURES_FILE, EPOCHS_FILE, CHECKPOINT, *PICTURES):
        (directory / name).unlink(missing_ok=True)
    for name in (BACKBONE_FOLDER, BOARD_FOLDER):
        shutil.rmtree(directory / name, ignore_errors=True)


def leave_pictures(out: Path, progress: Progress, figure: str, report: Measured) -> tuple[str, ...] | None:
    """Draw what there is to see; names of the PNGs, or None where nothing can be drawn here."""
    if not can_draw():
        return None
    drawn = []
    if progress.judged:
        draw_training(out / "training.png", progress.judged, figure, progress.chosen)
        drawn.append("training.png")
    if "confusion" in report.detail:
        confusion = report.detail["confusion"]
        draw_confusion(out / "confusion.png", confusion["counts"], confusion["labels"])
        drawn.append("confusion.png")
    if report.trials:
        draw_det(out / "det.png", report.trials)
        drawn.append("det.png")
    return tuple(drawn)


def leave_figures(out: Path, run: str, data: str, chosen: int, report: Measured, seconds: float) -> None:
    """Write `figures.json`."""
    told = {
        "run": run,
        "data": data,
        "seconds": round(seconds, 1),
        "chosen_epoch": chosen,
        "report": {**report.figures, **report.detail},
    }
    (out / FIGURES_FILE).write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
