"""Pictures beside a model card, as small PNGs. The only module that draws, by matplotlib.

matplotlib is not among what a server needs (`pip install matplotlib`): where it is missing, `can_draw` says
so and nothing else here is called.
"""

import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from service.scoring.metrics import error_rates
from service.training.answers import TrialAnswers
from service.training.checkpoint import EpochFigures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 90
COLOURS = 64
POINTS = 300  # of a DET curve
RATES = (0.001, 0.01, 0.05, 0.1, 0.2, 0.4)  # ticks of a DET curve
FEW_CLASSES = 60  # whose names can be read at the axes


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw_training(path: Path, epochs: Sequence[EpochFigures], figure: str, chosen: int) -> None:
    """Loss and the selection part's figure by epoch."""
    numbers = [each.epoch for each in epochs]
    with _Canvas(path, 6.0, 3.6) as canvas:
        axes = canvas.subplots()
        axes.plot(numbers, [each.loss for each in epochs], color="tab:gray", label="loss")
        axes.set_xlabel("epoch")
        axes.set_ylabel("training loss")
        other = axes.twinx()
        other.plot(numbers, [each.figure or 0.0 for each in epochs], color="tab:blue", marker=".", label=figure)
        other.axvline(chosen, color="tab:blue", linestyle=":", linewidth=1)
        other.set_ylabel(f"selection {figure}", color="tab:blue")


def draw_confusion(path: Path, counts: ArrayLike, labels: Sequence[str]) -> None:
    """Shares of each class's clips (row) by what they were answered with."""
    matrix = np.asarray(counts, dtype=np.float64)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1.0)
    size = min(3.5 + 0.16 * len(labels), 9.0)
    with _Canvas(path, size, size) as figure:
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, interpolation="nearest")
        axes.figure.colorbar(image, ax=axes, fraction=0.046, pad=0.04)
        axes.set_xlabel("answer")
        axes.set_ylabel("class")
        if len(labels) <= FEW_CLASSES:
            small = 8 if len(labels) <= 20 else 6
            shown = [label if len(label) <= 20 else f"{label[:19]}…" for label in labels]
            axes.set_xticks(range(len(labels)), shown, rotation=90, fontsize=small)
            axes.set_yticks(range(len(labels)), shown, fontsize=small)


def draw_det(path: Path, lists: Sequence[TrialAnswers]) -> None:
    """Misses over false accepts of each trial list, both on the scale of the normal deviate (Martin et al. 1997)."""
    with _Canvas(path, 4.8, 4.8) as figure:
        axes = figure.subplots()
        for each in lists:
            rates = error_rates(each.scores, each.targets)
            kept = np.unique(np.linspace(0, len(rates.thresholds) - 1, POINTS).astype(int))
            line = (_deviates(rates.false_accepts[kept]), _deviates(rates.misses[kept]))
            axes.plot(*line, label=f"{each.name} (EER {float(rates.equal()[0]):.3f})")
        ends = _deviates(np.array([5e-4, 0.6]))
        axes.plot(ends, ends, color="lightgray", linewidth=1, zorder=0)
        ticks = _deviates(np.array(RATES)), [f"{100 * rate:g} %" for rate in RATES]
        axes.set(xlim=tuple(ends), ylim=tuple(ends), xlabel="false accepts", ylabel="misses")
        axes.set_xticks(*ticks)
        axes.set_yticks(*ticks)
        axes.grid(linewidth=0.3)
        axes.legend(fontsize=8)


class _Canvas:
    """A figure that becomes a PNG; by matplotlib's own objects, without its global state."""

    def __init__(self, path: Path, width: float, height: float) -> None:
        from matplotlib.figure import Figure

        self._path = path
        self._figure = Figure(figsize=(width, height), layout="constrained")

    def __enter__(self) -> "Figure":
        return self._figure

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None:
            from PIL import Image  # comes with matplotlib

            drawn = io.BytesIO()
            self._figure.savefig(drawn, dpi=DPI)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # A palette makes the file a third as large; nothing in it says when and by what release it was drawn.
            with Image.open(drawn) as image:
                image.convert("RGB").quantize(COLOURS).save(self._path, "PNG", optimize=True)


def _deviates(rates: NDArray[np.float64]) -> NDArray[np.float64]:
    normal = NormalDist()
    return np.array([normal.inv_cdf(float(rate)) for rate in np.clip(rates, 1e-5, 1 - 1e-5)])
