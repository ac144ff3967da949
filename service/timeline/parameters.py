"""What turns scores of windows into events: the grid, thresholds, and how long events and gaps have to be."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidRequest

Floats = NDArray[np.float64]

HOP_SECONDS = 0.5
FRAME_SECONDS = 0.01  # windows start on frames
THRESHOLD = 0.5
BACKGROUND = "background"  # the label of nothing in particular, which is never an event
LONGEST_SECONDS = 3600.0  # of what a parameter may ask
_TOLERANCE = 1e-6  # seconds


@dataclass(frozen=True, slots=True)
class Parameters:
    """How events are made of scores, in this order: smoothing, threshold and hysteresis, merged gaps, least length.

    Args:
        hop: seconds from one window's start to the next, and the length of a cell; a whole number of 10 ms frames.
        threshold: an event begins at a cell that scores as much; one for all, or by label and 0.5 for others.
        hysteresis: an event ends before a cell below it; the threshold unless given, and never above it.
        smoothing: seconds; a cell has the mean over the cells whose middles are at most half of it away.
        min_seconds: shorter events are dropped; the hop unless given.
        merge_gap: shorter gaps, seconds, within a label are closed; the hop unless given.

    Raises:
        InvalidRequest: for what no event could be made with.
    """

    hop: float = HOP_SECONDS
    threshold: float | Mapping[str, float] = THRESHOLD
    hysteresis: float | None = None
    smoothing: float = 0.0
    min_seconds: float | None = None
    merge_gap: float | None = None

    def __post_init__(self) -> None:
        frames = _within("hop", self.hop, FRAME_SECONDS, LONGEST_SECONDS) / FRAME_SECONDS
        if abs(frames - round(frames)) > _TOLERANCE:
            raise InvalidRequest(f"hop: expected a multiple of {FRAME_SECONDS} s, got {self.hop:g}")
        levels = self.threshold if isinstance(self.threshold, Mapping) else {"": self.threshold}
        for label, level in levels.items():
            _within(f"threshold.{label}" if label else "threshold", level, 0.0, 1.0)
        for name in ("smoothing", "min_seconds", "merge_gap"):
            if getattr(self, name) is not None:
                _within(name, getattr(self, name), 0.0, LONGEST_SECONDS)
        if self.hysteresis is not None:
            _within("hysteresis", self.hysteresis, 0.0, 1.0)

    @classmethod
    def of(cls, manifest: Mapping[str, Any] | None, **asked: Any) -> Self:
        """A manifest's `events`, with what a request asks instead where it is not None.

        Raises:
            InvalidRequest: nonsense, or a hysteresis asked for that lies above every threshold.
        """
        asked = {name: value for name, value in asked.items() if value is not None}
        made = cls(**{**(manifest or {}), **asked})
        if "hysteresis" in asked and asked["hysteresis"] > made._highest():
            raise InvalidRequest(
                f"hysteresis: expected at most the threshold, {made._highest():g}, got {asked['hysteresis']:g}; "
                "an event begins at the threshold and ends below the hysteresis"
            )
        return made

    def levels(self, labels: Sequence[str]) -> tuple[Floats, Floats]:
        """Scores at which events of each label begin and below which they end, `[C]` both."""
        by_label = self.threshold if isinstance(self.threshold, Mapping) else dict.fromkeys(labels, self.threshold)
        begin = np.array([by_label.get(label, THRESHOLD) for label in labels], dtype=np.float64)
        return begin, begin if self.hysteresis is None else np.minimum(begin, self.hysteresis)

    def told(self) -> dict[str, Any]:
        """As JSON, with the defaults filled in and the hysteresis that is used."""
        threshold: float | dict[str, float]
        hysteresis: float | dict[str, float]
        most = 1.0 if self.hysteresis is None else self.hysteresis
        if isinstance(self.threshold, Mapping):
            threshold = dict(self.threshold)
            hysteresis = {label: min(level, most) for label, level in threshold.items()}
        else:
            threshold, hysteresis = self.threshold, min(self.threshold, most)
        defaults = {"min_seconds": self.hop, "merge_gap": self.hop}
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return {**defaults, **given, "threshold": threshold, "hysteresis": hysteresis}

    def _highest(self) -> float:
        return max((*self.threshold.values(), THRESHOLD)) if isinstance(self.threshold, Mapping) else self.threshold


def _within(name: str, value: float, low: float, high: float) -> float:
    if not (math.isfinite(value) and low <= value <= high):
        raise InvalidRequest(f"{name}: expected a number from {low:g} to {high:g}, got {value:g}")
    return value
