"""Voices of other people, by which scores are judged: adaptive s-norm, and thresholds of one voice against many."""

from bisect import bisect_left
from functools import cached_property, lru_cache
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_MIN_DEVIATION: Final = 1e-6
_MOST_PROBES: Final = 500  # of a large cohort, evenly spaced
_STEPS: Final = 2000  # between the lowest score and the highest
_TAIL_SHARE, _TAIL_SCORES, _FEWEST_SCORES = 0.02, 500, 50  # of all scores the highest, from which the tail is fitted


def adaptive_s_norm(score: ArrayLike, enrolment: ArrayLike, test: ArrayLike, top: int) -> Floats:
    """Normalised scores `[...]`: the mean, over both sides, of (score - mean) / deviation of their own nearest voices.

    Adaptive s-norm 1 of Matejka et al., "Analysis of Score Normalization in Multilingual Speaker Recognition" (2017).

    Args:
        score: `[...]`.
        enrolment, test: each side's scores with a cohort, `[..., N]`; -inf for voices that do not count.
        top: how many of the highest ones count.
    """
    sides = []
    for cohort in (np.asarray(enrolment, np.float64), np.asarray(test, np.float64)):
        count = min(top, int(np.isfinite(cohort).sum(axis=-1).min()))
        nearest = np.partition(cohort, cohort.shape[-1] - count, axis=-1)[..., cohort.shape[-1] - count :]
        deviation = np.maximum(nearest.std(axis=-1), _MIN_DEVIATION)
        sides.append((np.asarray(score, np.float64) - nearest.mean(axis=-1)) / deviation)
    normalised: Floats = (sides[0] + sides[1]) / 2
    return normalised


class Cohort:
    """Embeddings of people who use nothing here. Thread-safe.

    Args:
        embeddings: `[N, dim]`, of length 1, each somebody else's.
        top: how many of the nearest ones normalise a score.
    """

    def __init__(self, embeddings: NDArray[np.float32], top: int) -> None:
        self._embeddings = embeddings
        self._top = top

    def normalise(self, score: float, enrolment: NDArray[np.float32], test: NDArray[np.float32]) -> float:
        """The normalised score of two embeddings `[dim]` of length 1 whose cosine is `score`."""
        return float(adaptive_s_norm(score, self._embeddings @ enrolment, self._embeddings @ test, self._top))

    @cached_property
    def open_set(self) -> "OpenSet | None":
        """What strangers reach; None where the cohort is too small to tell."""
        count = len(self._embeddings)
        if count * (count - 1) * _TAIL_SHARE < _FEWEST_SCORES:
            return None
        probes = np.unique(np.linspace(0, count - 1, min(count, _MOST_PROBES)).astype(int))
        is_other = np.arange(count) != probes[:, None]
        scores = self._embeddings[probes] @ self._embeddings.T
        return OpenSet(scores[is_other].reshape(len(probes), count - 1))


class OpenSet:
    """The best score of a stranger among N people, from scores of people who are strangers to one another.

    Args:
        scores: `[P, M]`, of P strangers with M others each.
    """

    def __init__(self, scores: ArrayLike) -> None:
        values = np.asarray(scores, dtype=np.float64)
        self._probes, self._others = values.shape
        pool = np.sort(values, axis=None)
        self._thresholds = np.append(np.linspace(pool[0], pool[-1], _STEPS), np.nextafter(pool[-1], np.inf))
        below = [np.searchsorted(row, self._thresholds) for row in np.sort(values, axis=1)]
        self._reached = self._others - np.stack(below)  # [P, T], others at or above each threshold
        tail = min(_TAIL_SCORES, max(_FEWEST_SCORES, int(_TAIL_SHARE * len(pool))), len(pool) - 1)
        self._tail_share = tail / len(pool)
        self._tail_begin = float(pool[-tail - 1])
        self._tail_excess = float(np.mean(pool[-tail:])) - self._tail_begin
        self.threshold = lru_cache(maxsize=1024)(self._threshold)

    def _threshold(self, searched: int, rate: float) -> tuple[float, bool]:
        """The score that the best of so many reaches for a share `rate` of strangers, and whether it is extrapolated.

        Where there are as many others, and 1 / `rate` strangers, it is measured: over all choices of `searched` of a
        stranger's others. Beyond, scores above the highest ones are taken to fall off exponentially (a generalised
        Pareto tail of shape 0), which bounded and normal ones do faster: fewer strangers than `rate` are let in then.
        """
        if not (searched >= 1 and 0 < rate < 1):
            raise ValueError(f"no threshold for {searched} searched, rate {rate}")
        if searched > self._others or self._probes * rate < 1:
            share = -np.expm1(np.log1p(-rate) / searched)  # of single scores that may lie above
            times = np.log(max(self._tail_share / share, 1.0))
            return self._tail_begin + self._tail_excess * float(times), True
        left = np.arange(self._others, 0, -1)  # chances that none of the first k others is among those searched
        with np.errstate(divide="ignore"):
            missed = np.concatenate(([1.0], np.exp(np.cumsum(np.log(np.maximum(left - searched, 0) / left)))))
        at = bisect_left(
            range(len(self._thresholds)),
            True,
            key=lambda step: bool(np.mean(1.0 - missed[self._reached[:, step]]) <= rate),
        )
        return float(self._thresholds[at]), False
