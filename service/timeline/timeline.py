"""From the scores of windows, as they come, to events: what was heard from when to when.

The rule is section 7 of the contract. Windows start at k * hop, the last one lies flush with the end. A cell of `hop`
seconds has the mean score of the windows that hold its middle; the last cell ends with the recording. A window of 5 s
says that something is within these 5 s: an onset is placed no better than its score rises over the windows around it.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from service.errors import InvalidRequest
from service.timeline.parameters import BACKGROUND, Parameters

Floats = NDArray[np.float64]

_DIGITS = 6  # of seconds: a product of hops is not exact
_TOLERANCE = 1e-6  # seconds


@dataclass(frozen=True, slots=True)
class Event:
    """A label heard from `start` to `end`, seconds; `score` is the mean over its cells."""

    label: str
    start: float
    end: float
    score: float


class Timeline:
    """Events of one recording and one adapter. Memory does not grow with the recording.

    Args:
        labels: names of the classes, `[C]`.
        window_seconds: how long each window is.

    Raises:
        InvalidRequest: windows that are shorter than the hop would leave parts of the recording unheard.
    """

    def __init__(self, labels: Sequence[str], window_seconds: float, parameters: Parameters) -> None:
        if parameters.hop > window_seconds + _TOLERANCE:
            raise InvalidRequest(
                f"hop: expected at most {window_seconds:g} s, which the adapter hears at a time, got {parameters.hop:g}"
            )
        self._window = window_seconds
        self._hop = parameters.hop
        reach = max(1, math.ceil(window_seconds / self._hop - 0.5 - _TOLERANCE))  # windows that hold a cell's middle
        self._recent: deque[Floats] = deque(maxlen=reach)  # the last windows that are known to start on the grid
        self._held: Floats | None = None  # the last window: on the grid, or flush with the end
        self._windows = 0  # on the grid
        self._cells = 0  # whose score is known
        half = int((parameters.smoothing / 2 + _TOLERANCE) / self._hop)
        self._smoothing = _Smoothing(half)
        self._spans = _Spans(labels, parameters)

    def add(self, scores: ArrayLike) -> list[Event]:
        """Take the scores `[W, C]` of the next windows; tell the events that no later window can change."""
        found: list[Event] = []
        for row in np.asarray(scores, dtype=np.float64):
            if self._held is not None:
                if self._windows:
                    found += self._cell(np.mean(self._recent, axis=0))
                self._recent.append(self._held)
                self._windows += 1
            self._held = row
        return found

    def finish(self, seconds: float) -> list[Event]:
        """The events that are left, of a recording that is so long and whose last window lies flush with its end."""
        found: list[Event] = []
        if self._held is None:
            return found
        last_start = max(0.0, min(self._windows * self._hop, seconds - self._window))
        first = self._windows - len(self._recent)  # number of the oldest window that is kept
        for cell in range(self._cells, math.ceil(seconds / self._hop - _TOLERANCE)):
            middle = (cell * self._hop + min((cell + 1) * self._hop, seconds)) / 2
            rows = [row for k, row in enumerate(self._recent, first) if self._holds(k * self._hop, middle)]
            if last_start <= middle + _TOLERANCE:
                rows.append(self._held)
            found += self._cell(np.mean(rows, axis=0))
        for score in self._smoothing.finish():
            found += self._spans.add(score)
        return found + self._spans.finish(seconds)

    def _holds(self, start: float, middle: float) -> bool:
        return start <= middle + _TOLERANCE and middle < start + self._window - _TOLERANCE

    def _cell(self, score: Floats) -> list[Event]:
        self._cells += 1
        return [event for smooth in self._smoothing.add(score) for event in self._spans.add(smooth)]


class _Smoothing:
    """The mean of each cell with `half` cells on both sides, as many as there are."""

    def __init__(self, half: int) -> None:
        self._half = half
        self._near: deque[Floats] = deque(maxlen=2 * half + 1)
        self._added = 0

    def add(self, cell: Floats) -> list[Floats]:
        self._near.append(cell)
        self._added += 1
        return [np.mean(self._near, axis=0)] if self._added > self._half else []

    def finish(self) -> list[Floats]:
        """The cells at the end, whose right side is cut off."""
        cells, left = list(self._near), min(self._half, self._added)
        middles = range(len(cells) - left, len(cells))
        return [np.mean(cells[max(0, middle - self._half) :], axis=0) for middle in middles]


class _Spans:
    """Runs of cells by label: hysteresis, gaps closed, what is too short dropped."""

    def __init__(self, labels: Sequence[str], parameters: Parameters) -> None:
        count, told = len(labels), parameters.told()
        self._labels = labels
        self._hop = parameters.hop
        self._begin, self._end = parameters.levels(labels)
        self._merge_gap = float(told["merge_gap"])
        self._min_seconds = float(told["min_seconds"])
        self._heard = np.array([label != BACKGROUND for label in labels], dtype=bool)
        self._on = np.zeros(count, dtype=bool)  # the last cell belongs to an event
        self._start = np.full(count, -1, dtype=np.int64)  # first cell of an event that may go on, -1 for none
        self._stop = np.zeros(count, dtype=np.int64)  # the cell behind it
        self._sum = np.zeros(count)  # scores of its cells
        self._gap = np.zeros(count)  # scores of the cells behind it
        self._cells = 0

    def add(self, score: Floats) -> list[Event]:
        """Take the next cell's scores `[C]`; tell the events that are over, sorted by end, start and label."""
        cell, self._cells = self._cells, self._cells + 1
        on = self._on = (score >= np.where(self._on, self._end, self._begin)) & self._heard
        begins = on & (self._start < 0)
        self._start[begins] = cell
        self._sum[begins] = self._gap[begins] = 0.0
        self._gap += score
        self._sum[on] += self._gap[on]
        self._gap[on] = 0.0
        self._stop[on] = cell + 1
        silent = (self._cells - self._stop) * self._hop
        return self._close((self._start >= 0) & ~on & (silent > self._merge_gap - _TOLERANCE), math.inf)

    def finish(self, seconds: float) -> list[Event]:
        return self._close(self._start >= 0, seconds)

    def _close(self, over: NDArray[np.bool_], seconds: float) -> list[Event]:
        found: list[Event] = []
        for label in np.flatnonzero(over).tolist():
            first, stop = int(self._start[label]), int(self._stop[label])
            start, end = first * self._hop, min(stop * self._hop, seconds)
            if (stop - first) * self._hop > self._min_seconds - _TOLERANCE:  # the last cell counts as a whole one
                score = float(self._sum[label] / (stop - first))
                found.append(Event(self._labels[label], round(start, _DIGITS), round(end, _DIGITS), score))
        self._start[over] = -1
        return sorted(found, key=lambda event: (event.end, event.start))
