"""Turns raw outputs into calibrated ones, and fits how. Knows no models and no files (numpy only)."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

LOG_TEMPERATURES = np.linspace(-0.7, 3.0, 371)  # 0.5 to 20: a few right answers do not make certainty
NEWTON_STEPS = 50
RIDGE = 1e-3  # keeps slope and intercept finite when trials separate perfectly


def log_likelihood_ratio(score: float, slope: float, intercept: float) -> float:
    """Natural log of p(score | same speaker) / p(score | different speakers): `slope * score + intercept`."""
    return slope * score + intercept


def negative_log_likelihood(logits: ArrayLike, targets: ArrayLike) -> float:
    """Mean softmax cross entropy of logits `[N, C]` against classes `[N]`, nats."""
    values = np.asarray(logits, dtype=np.float64)
    shifted = values - values.max(axis=1, keepdims=True)
    chosen = shifted[np.arange(len(values)), np.asarray(targets)]
    return float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - chosen))


def binary_log_likelihood(logits: ArrayLike, targets: ArrayLike) -> float:
    """Mean sigmoid cross entropy of logits `[N, C]` against 0/1 targets `[N, C]`, nats."""
    values, wanted = np.asarray(logits, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    return float(np.mean(np.logaddexp(0.0, values) - wanted * values))


def fit_temperature(
    logits: ArrayLike,
    targets: ArrayLike,
    loss: Callable[[ArrayLike, ArrayLike], float] = negative_log_likelihood,
) -> float:
    """Temperature that minimises `loss` over logits `[N, C]`, found on a grid of 1 % steps."""
    grid = np.exp(LOG_TEMPERATURES)
    values = np.asarray(logits, dtype=np.float64)
    losses = [loss(values / temperature, targets) for temperature in grid]
    return float(grid[int(np.argmin(losses))])


def fit_logistic(scores: ArrayLike, targets: ArrayLike) -> tuple[float, float]:
    """Slope and intercept of the log-likelihood ratio of scores `[N]`, by logistic regression.

    Target and non-target trials weigh the same in total, so the result does not depend on how many of each
    the list happened to hold. Newton's method on standardised scores, with a small ridge on the slope.
    """
    values, wanted = np.asarray(scores, dtype=np.float64), np.asarray(targets, dtype=bool)
    if not wanted.any() or wanted.all():
        raise ValueError("a calibration needs target and non-target trials")
    weights = np.where(wanted, 0.5 / wanted.sum(), 0.5 / (~wanted).sum())
    centre, spread = float(values.mean()), max(float(values.std()), 1e-12)
    design = np.stack([(values - centre) / spread, np.ones_like(values)], axis=1)
    ridge = np.diag([RIDGE, 0.0])
    solution = np.zeros(2)
    for _ in range(NEWTON_STEPS):
        p = 1.0 / (1.0 + np.exp(-np.clip(design @ solution, -500.0, 500.0)))
        gradient = design.T @ (weights * (p - wanted)) + ridge @ solution
        curvature = design.T @ (design * (weights * p * (1.0 - p))[:, None]) + ridge + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        solution = solution - np.clip(step, -10.0, 10.0)
        if np.abs(step).max() < 1e-9:
            break
    slope = float(solution[0]) / spread
    return slope, float(solution[1]) - slope * centre


def open_set_threshold(slope: float, intercept: float, searched: int, rate: float) -> float:
    """Raw score that the best of `searched` others reaches with probability `rate` at most, for somebody unknown.

    A calibrated log-likelihood ratio exceeds t on a different speaker with probability exp(-t) at most (Markov's
    inequality: the mean of the likelihood ratio is 1 there), the best of N with N exp(-t) at most.
    """
    if not (slope > 0 and searched >= 1 and 0 < rate < 1):
        raise ValueError(f"no threshold for slope {slope}, {searched} searched, rate {rate}")
    return float((np.log(searched / rate) - intercept) / slope)


def cllr(ratios: ArrayLike, targets: ArrayLike) -> float:
    """Cost of log-likelihood ratios `[N]`, bits: 0 is perfect, 1 what always answering 0 costs.

    Bruemmer and du Preez, "Application-independent evaluation of speaker detection" (2006):
    half the mean of `log2(1 + exp(-ratio))` over target trials and of `log2(1 + exp(ratio))` over the others.
    """
    values, wanted = np.asarray(ratios, dtype=np.float64), np.asarray(targets, dtype=bool)
    costs = np.logaddexp(0.0, np.where(wanted, -values, values)) / np.log(2.0)
    return float((costs[wanted].mean() + costs[~wanted].mean()) / 2)


def min_cllr(scores: ArrayLike, targets: ArrayLike) -> float:
    """The least `cllr` that any rising function of scores `[N]` reaches: what calibration cannot mend."""
    values, wanted = np.asarray(scores, dtype=np.float64), np.asarray(targets, dtype=bool)
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    shares = isotonic(np.bincount(place, wanted) / counts, counts)[place]
    with np.errstate(divide="ignore"):
        ratios = np.log(shares) - np.log1p(-shares) - np.log(wanted.sum() / (~wanted).sum())
    return cllr(ratios, wanted)


def isotonic(values: ArrayLike, weights: ArrayLike) -> NDArray[np.float64]:
    """The rising sequence `[N]` nearest to `values` by weighted squares, by pooling adjacent violators (Ayer 1955)."""
    pools: list[tuple[float, float, int]] = []  # mean, weight, length
    for mean, weight in zip(
        np.asarray(values, np.float64).tolist(), np.asarray(weights, np.float64).tolist(), strict=True
    ):
        length = 1
        while pools and pools[-1][0] >= mean:
            before, other, count = pools.pop()
            mean, weight, length = (before * other + mean * weight) / (other + weight), other + weight, length + count
        pools.append((mean, weight, length))
    return np.repeat([mean for mean, _, _ in pools], [length for _, _, length in pools])
