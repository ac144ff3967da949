"""Confidence intervals by the percentile bootstrap (Efron 1979). Knows no models and no files (numpy only).

Clips are resampled for classes, or what they are from (speakers, recordings) where enough of that is told. For
verification it is speakers: trials share clips and clips share speakers, so that trials resampled one by one would
pretend to far more evidence than there is. A speaker that is drawn k times counts k times in its target trials, and k
* l times in the trials against one that is drawn l times; a trial list with too few speakers for that has its trials
resampled, and says so.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.scoring.classes import average_precisions
from service.scoring.events import f_scores
from service.scoring.metrics import error_rates

Floats = NDArray[np.float64]
Intervals = dict[str, tuple[float, float]]

LEVEL = 0.95
REPLICATES = 1000
FEWEST = 10  # groups or speakers
_BLOCK = 2**21  # weights in memory at a time


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How intervals were made, and what they are."""

    intervals: Intervals  # figure -> low, high
    resampled: str  # clips, groups, files, speakers or trials
    replicates: int
    level: float = LEVEL


def class_intervals(
    scores: NDArray[np.floating],
    hot: NDArray[np.bool_],
    targets: NDArray[np.int64],
    replicates: int,
    seed: int = 0,
    groups: NDArray[np.int64] | None = None,
) -> Bootstrap:
    """Intervals of `accuracy` and `map`: scores and labels `[N, C]`, first labels and numbers of groups `[N]`."""
    right = (scores.argmax(axis=1) == targets).astype(np.float64)

    def measure(weights: Floats) -> dict[str, Floats]:
        precisions = average_precisions(scores, hot, weights)
        known = ~np.isnan(precisions)
        means = np.where(known, precisions, 0.0).sum(axis=1) / known.sum(axis=1)
        return {"accuracy": weights @ right / weights.sum(axis=1), "map": means}

    things = 0 if groups is None else int(groups.max()) + 1
    if groups is None or things < FEWEST:
        groups, things = np.arange(len(targets)), len(targets)
    drawn = _counts(np.random.default_rng(seed), things, replicates, len(targets))
    resampled = "clips" if things == len(targets) else "groups"
    return Bootstrap(_intervals(measure, (counts[:, groups] for counts in drawn)), resampled, replicates)


def trial_intervals(
    scores: Floats,
    targets: NDArray[np.bool_],
    speakers: NDArray[np.int64],
    replicates: int,
    seed: int = 0,
    shares: Mapping[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]] | None = None,
) -> Bootstrap:
    """Intervals of `eer`, `min_dcf_1` and `min_dcf_10`, and of `shares`.

    Args:
        scores: `[N]`.
        targets: `[N]`, one speaker?
        speakers: `[N, 2]`, numbers from 0 of the two sides of each trial.
        shares: by name, which trials are meant, and in which of them something holds.
    """

    def measure(weights: Floats) -> dict[str, Floats]:
        usable = (weights @ targets > 0) & (weights @ ~targets > 0)  # a draw of one speaker only has no other trial
        rates = error_rates(scores, targets, weights[usable])
        figures = {"eer": rates.equal()[0], "min_dcf_1": rates.min_dcf(), "min_dcf_10": rates.min_dcf(c_miss=10.0)}
        for name, (among, holds) in (shares or {}).items():
            figures[name] = weights[usable] @ (among & holds) / (weights[usable] @ among)
        return figures

    rng, trials, people = np.random.default_rng(seed), len(scores), int(speakers.max()) + 1
    if people < FEWEST:
        return Bootstrap(_intervals(measure, _counts(rng, trials, replicates, trials)), "trials", replicates)
    left, right = speakers.T
    drawn = (
        np.where(left == right, counts[:, left], counts[:, left] * counts[:, right])
        for counts in _counts(rng, people, replicates, trials)
    )
    return Bootstrap(_intervals(measure, drawn), "speakers", replicates)


def file_intervals(counts: Mapping[str, NDArray[np.int64]], replicates: int, seed: int = 0) -> Bootstrap:
    """Intervals of F1 over files: by name, counts `[files, labels, 3]` as `service.scoring.events` makes them."""
    sums = {name: each.sum(axis=1).astype(np.float64) for name, each in counts.items()}

    def measure(weights: Floats) -> dict[str, Floats]:
        return {name: f_scores(weights @ each)[:, 2] for name, each in sums.items()}

    files = len(next(iter(sums.values())))
    drawn = _counts(np.random.default_rng(seed), files, replicates, files)
    return Bootstrap(_intervals(measure, drawn), "files", replicates)


def _counts(rng: np.random.Generator, things: int, replicates: int, width: int) -> Iterator[Floats]:
    """How often each thing is drawn when as many are drawn as there are: blocks of `[replicates, things]`."""
    rows = max(1, _BLOCK // width)
    for start in range(0, replicates, rows):
        count = min(rows, replicates - start)
        drawn = rng.integers(things, size=(count, things)) + things * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * things).reshape(count, things).astype(np.float64)


def _intervals(measure: Callable[[Floats], dict[str, Floats]], drawn: Iterator[Floats]) -> Intervals:
    blocks = [measure(weights) for weights in drawn]
    tails = (50 * (1 - LEVEL), 50 * (1 + LEVEL))
    found: Intervals = {}
    for name in blocks[0]:
        values = np.concatenate([block[name] for block in blocks])
        if len(values):
            low, high = np.percentile(values, tails)
            found[name] = (float(low), float(high))
    return found
