"""Figures of merit over many clips or trials. Knows no models and no files (numpy only).

Where a function takes `weights` `[..., N]`, each clip or trial counts so many times, and the figure has the leading
axes of the weights: the replicates of a bootstrap are measured at once.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

P_TARGET = 0.01  # prior of a target trial in minDCF


def accuracy(scores: ArrayLike, targets: ArrayLike) -> float:
    """Share of clips whose best class, of scores `[N, C]`, is the target class `[N]`."""
    values, wanted = np.asarray(scores), np.asarray(targets)
    if values.ndim != 2 or wanted.shape != values.shape[:1] or len(wanted) == 0:
        raise ValueError(f"accuracy needs scores [N, C] and targets [N], got {values.shape} and {wanted.shape}")
    return float(np.mean(values.argmax(axis=1) == wanted))


@dataclass(frozen=True, slots=True)
class ErrorRates:
    """Misses and false accepts of `score >= threshold` at every threshold that changes a decision."""

    thresholds: Floats  # [T], ascending, the last one above every score
    misses: Floats  # [..., T], from 0 up to 1
    false_accepts: Floats  # [..., T], from 1 down to 0

    def equal(self) -> tuple[Floats, Floats]:
        """Where both rates meet, `[...]`, and the threshold there.

        Between two neighbouring thresholds the rates are joined by straight lines, as a ROC curve is.
        """
        gap = self.misses - self.false_accepts  # rises from -1 to 1
        after = np.argmax(gap >= 0, axis=-1)[..., None]
        before = np.maximum(after - 1, 0)  # gap[0] is -1, so `after` is never 0
        high, low = np.take_along_axis(gap, after, -1), np.take_along_axis(gap, before, -1)
        share = -low / (high - low)
        left, right = (np.take_along_axis(self.misses, where, -1) for where in (before, after))
        thresholds = self.thresholds[before] + share * (self.thresholds[after] - self.thresholds[before])
        return (left + share * (right - left))[..., 0], thresholds[..., 0]

    def min_dcf(self, p_target: float = P_TARGET, c_miss: float = 1.0) -> Floats:
        """Smallest detection cost over all thresholds, `[...]`, as `min_dcf` defines it."""
        costs = c_miss * p_target * self.misses + (1.0 - p_target) * self.false_accepts
        smallest: Floats = costs.min(axis=-1) / min(c_miss * p_target, 1.0 - p_target)
        return smallest


def error_rates(scores: ArrayLike, targets: ArrayLike, weights: ArrayLike | None = None) -> ErrorRates:
    """Error rates of trials.

    Args:
        scores: `[N]`, higher means more likely the same speaker.
        targets: `[N]`, true where the trial is a target trial.
        weights: `[..., N]`, how often each trial counts; rates are NaN where no target or no other trial does.
    """
    values, wanted = np.asarray(scores, dtype=np.float64), np.asarray(targets, dtype=bool)
    if values.ndim != 1 or values.shape != wanted.shape:
        raise ValueError(f"scores and targets must be [N] both, got {values.shape} and {wanted.shape}")
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite")
    if not wanted.any() or wanted.all():
        raise ValueError(f"need target and non-target trials, got {wanted.sum()} and {(~wanted).sum()}")
    order = np.argsort(values)
    thresholds, below = np.unique(values[order], return_index=True)  # [T], trials under each of them
    counts = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    counts, wanted = counts[..., order], wanted[order]
    with np.errstate(invalid="ignore"):
        misses = _shares_below(counts * wanted, below)
        false_accepts = 1.0 - _shares_below(counts * ~wanted, below)
    return ErrorRates(np.append(thresholds, np.nextafter(thresholds[-1], np.inf)), misses, false_accepts)


def _shares_below(counts: Floats, below: NDArray[np.intp]) -> Floats:
    """Of counts `[..., N]` the share before each position, and the whole: `[..., T + 1]`."""
    sums = np.concatenate((np.zeros((*counts.shape[:-1], 1)), np.cumsum(counts, axis=-1)), axis=-1)
    shares: Floats = sums[..., np.append(below, counts.shape[-1])] / sums[..., -1:]
    return shares


def equal_error_rate(scores: ArrayLike, targets: ArrayLike) -> tuple[float, float]:
    """Equal error rate of trials `[N]` and its threshold: where misses and false accepts meet."""
    rate, threshold = error_rates(scores, targets).equal()
    return float(rate), float(threshold)


def min_dcf(scores: ArrayLike, targets: ArrayLike, *, p_target: float = P_TARGET, c_miss: float = 1.0) -> float:
    """Smallest detection cost over all thresholds, normalised by the better of the two constant answers.

    `min(c_miss * p * miss + (1 - p) * false_accept) / min(c_miss * p, 1 - p)`, NIST's definition with a false
    alarm's cost of 1; at most 1.
    """
    return float(error_rates(scores, targets).min_dcf(p_target, c_miss))


def threshold_at_false_accepts(scores: ArrayLike, targets: ArrayLike, rate: float) -> float:
    """The lowest threshold that accepts at most this share of the non-target trials `[N]`.

    It lies half-way to the next score below, so that a score right at it is not a matter of rounding.
    """
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"a false-accept rate is within 0 and 1, got {rate}")
    found = error_rates(scores, targets)
    first = int(np.argmax(found.false_accepts <= rate))
    before = max(first - 1, 0)
    return float((found.thresholds[before] + found.thresholds[first]) / 2)
