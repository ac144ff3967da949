"""Figures of detected events: event-based with collars, and segment-based. Knows no models or files (numpy only).

The definitions are those of Mesaros, Heittola and Virtanen, "Metrics for polyphonic sound event detection" (2016), as
sed_eval computes them: within a file and a label events are paired one to one, as many as can be.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Span = tuple[str, float, float]  # label, start and end in seconds
Counts = NDArray[np.int64]  # [C, 3]: what is true and found, found alone, true alone

COLLAR_SECONDS = 0.2
COLLAR_SHARE = 0.2  # of the true event's length, which the offset may be off by
SEGMENT_SECONDS = 1.0


def event_counts(
    truth: Sequence[Span],
    found: Sequence[Span],
    labels: Sequence[str],
    collar: float = COLLAR_SECONDS,
    share: float = COLLAR_SHARE,
) -> Counts:
    """Events of one file that are right, of each label.

    An event is right where its onset lies within `collar` seconds of a true one's and its offset within the larger of
    `collar` and `share` of the true one's length.
    """
    counts = np.zeros((len(labels), 3), dtype=np.int64)
    for row, label in enumerate(labels):
        wanted, told = _of(truth, label), _of(found, label)
        fits = [[t for t, one in enumerate(told) if _fits(true, one, collar, share)] for true in wanted]
        paired = _pairs(fits)
        counts[row] = paired, len(told) - paired, len(wanted) - paired
    return counts


def segment_counts(
    truth: Sequence[Span], found: Sequence[Span], labels: Sequence[str], segment: float = SEGMENT_SECONDS
) -> Counts:
    """Segments of one file, `segment` seconds each, in which a label is right: it is active where an event touches."""
    counts = np.zeros((len(labels), 3), dtype=np.int64)
    for row, label in enumerate(labels):
        wanted, told = (_segments(_of(spans, label), segment) for spans in (truth, found))
        counts[row] = len(wanted & told), len(told - wanted), len(wanted - told)
    return counts


def f_scores(counts: NDArray[np.number]) -> NDArray[np.float64]:
    """Precision, recall and F1 of counts `[..., 3]` -> `[..., 3]`; 0 where nothing was found, or was there."""
    right, extra, missed = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    parts = (right + extra, right + missed, right + (extra + missed) / 2)
    return np.stack([right / np.maximum(part, 1e-300) for part in parts], axis=-1)


def _of(spans: Sequence[Span], label: str) -> list[tuple[float, float]]:
    return [(start, end) for name, start, end in spans if name == label]


def _fits(true: tuple[float, float], told: tuple[float, float], collar: float, share: float) -> bool:
    late = max(collar, share * (true[1] - true[0]))
    return abs(true[0] - told[0]) <= collar + 1e-9 and abs(true[1] - told[1]) <= late + 1e-9


def _pairs(fits: Sequence[Sequence[int]]) -> int:
    """The most pairs there can be: augmenting paths (Kuhn 1955)."""
    partner: dict[int, int] = {}

    def place(one: int, seen: set[int]) -> bool:
        for other in fits[one]:
            if other not in seen:
                seen.add(other)
                if other not in partner or place(partner[other], seen):
                    partner[other] = one
                    return True
        return False

    return sum(place(one, set()) for one in range(len(fits)))


def _segments(spans: Sequence[tuple[float, float]], segment: float) -> set[int]:
    ranges = (range(math.floor(start / segment + 1e-9), math.ceil(end / segment - 1e-9)) for start, end in spans)
    return {number for each in ranges for number in each}
