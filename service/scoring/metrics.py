"""Figures of merit over many clips or trials. Knows no models and no files (numpy only)."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

P_TARGET = 0.01  # prior of a target trial in minDCF


def accuracy(scores: ArrayLike, targets: ArrayLike) -> float:
    """Share of clips whose best class, of scores `[N, C]`, is the target class `[N]`."""
    values, wanted = np.asarray(scores), np.asarray(targets)
    if values.ndim != 2 or wanted.shape != values.shape[:1] or len(wanted) == 0:
        raise ValueError(f"accuracy needs scores [N, C] and targets [N], got {values.shape} and {wanted.shape}")
    return float(np.mean(values.argmax(axis=1) == wanted))


def error_rates(
    scores: ArrayLike, targets: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Miss and false-accept rates of `score >= threshold` at every threshold that changes a decision.

    Args:
        scores: `[N]`, higher means more likely the same speaker.
        targets: `[N]`, true where the trial is a target trial.

    Returns:
        thresholds `[T]` ascending, ending with one above every score; misses `[T]`; false accepts `[T]`.
    """
    values, wanted = np.asarray(scores, dtype=np.float64), np.asarray(targets, dtype=bool)
    if values.ndim != 1 or values.shape != wanted.shape:
        raise ValueError(f"scores and targets must be [N] both, got {values.shape} and {wanted.shape}")
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite")
    positives, negatives = np.sort(values[wanted]), np.sort(values[~wanted])
    if len(positives) == 0 or len(negatives) == 0:
        raise ValueError(f"need target and non-target trials, got {len(positives)} and {len(negatives)}")
    thresholds = np.unique(values)
    thresholds = np.append(thresholds, np.nextafter(thresholds[-1], np.inf))
    misses = np.searchsorted(positives, thresholds, side="left") / len(positives)
    false_accepts = 1.0 - np.searchsorted(negatives, thresholds, side="left") / len(negatives)
    return thresholds, misses, false_accepts


def equal_error_rate(scores: ArrayLike, targets: ArrayLike) -> tuple[float, float]:
    """Equal error rate and its threshold: where misses and false accepts meet.

    Between two neighbouring thresholds the two rates are joined by straight lines, as a ROC curve is.
    """
    thresholds, misses, false_accepts = error_rates(scores, targets)
    gap = misses - false_accepts  # rises from -1 to 1
    after = int(np.argmax(gap >= 0))
    if gap[after] == 0:
        return float(misses[after]), float(thresholds[after])
    before = after - 1  # exists: gap[0] is -1
    share = -gap[before] / (gap[after] - gap[before])
    rate = misses[before] + share * (misses[after] - misses[before])
    threshold = thresholds[before] + share * (thresholds[after] - thresholds[before])
    return float(rate), float(threshold)


def min_dcf(scores: ArrayLike, targets: ArrayLike, *, p_target: float = P_TARGET, c_miss: float = 1.0) -> float:
    """Smallest detection cost over all thresholds, normalised by the better of the two constant answers.

    `min(c_miss * p * miss + (1 - p) * false_accept) / min(c_miss * p, 1 - p)`, NIST's definition with a false
    alarm's cost of 1; at most 1.
    """
    _, misses, false_accepts = error_rates(scores, targets)
    costs = c_miss * p_target * misses + (1.0 - p_target) * false_accepts
    return float(costs.min() / min(c_miss * p_target, 1.0 - p_target))
