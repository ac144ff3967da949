from collections.abc import Callable
from itertools import pairwise
from math import exp
from statistics import NormalDist

import numpy as np
import pytest
from numpy.typing import NDArray

from service.scoring.cohort import Cohort, OpenSet, adaptive_s_norm
from service.scoring.score import l2_normalise

NORMAL = NormalDist()


def voices(seed: int, *shape: int) -> NDArray[np.float32]:
    return l2_normalise(np.random.default_rng(seed).standard_normal(shape))


@pytest.mark.parametrize("top", [2, 7, 50, 300])
def test_a_normalised_score_is_what_the_formula_written_out_says(top: int) -> None:
    cohort, enrolment, test = voices(0, 50, 8), voices(1, 8), voices(2, 8)
    score = float(enrolment @ test)
    expected = 0.0
    for side in (enrolment, test):
        nearest = sorted((float(side @ other) for other in cohort), reverse=True)[:top]
        mean = sum(nearest) / len(nearest)
        deviation = (sum((one - mean) ** 2 for one in nearest) / len(nearest)) ** 0.5
        expected += 0.5 * (score - mean) / deviation
    assert Cohort(cohort, top).normalise(score, enrolment, test) == pytest.approx(expected, rel=1e-5)


def test_a_published_example_of_s_norm() -> None:
    """With every voice counted it is s-norm: half of z-norm and half of t-norm (Kenny 2010)."""
    enrolment, test = [0.1, 0.2, 0.3], [-0.1, 0.1, 0.3]  # means 0.2 and 0.1, deviations sqrt(2/3) of 0.1 and of 0.2
    z_norm, t_norm = (0.5 - 0.2) / (0.1 * (2 / 3) ** 0.5), (0.5 - 0.1) / (0.2 * (2 / 3) ** 0.5)
    assert adaptive_s_norm(0.5, enrolment, test, 3) == pytest.approx((z_norm + t_norm) / 2)


def test_voices_that_do_not_count_are_as_if_not_there() -> None:
    rng = np.random.default_rng(3)
    left, right = rng.normal(size=(2, 5, 40))
    hidden = (
        np.concatenate([np.full((5, 2), -np.inf), left], axis=1),
        np.concatenate([right, np.full((5, 2), -np.inf)], axis=1),
    )
    scores = rng.normal(size=5)
    for top in (10, 300):
        assert adaptive_s_norm(scores, *hidden, top=top) == pytest.approx(adaptive_s_norm(scores, left, right, top))


def test_a_cohort_that_is_always_as_near_normalises_to_something_finite() -> None:
    same = np.tile(voices(4, 8), (10, 1))
    assert np.isfinite(Cohort(same, 5).normalise(0.5, same[0], same[0]))


# One against many


@pytest.mark.parametrize("searched", [1, 5, 50, 199])
def test_measured_thresholds_are_those_of_a_known_law(searched: int) -> None:
    """Normal scores: the best of N stays below t with probability cdf(t)^N."""
    value, extrapolated = OpenSet(np.random.default_rng(searched).standard_normal((500, 200))).threshold(searched, 0.1)
    assert not extrapolated
    assert 1 - NORMAL.cdf(value) ** searched == pytest.approx(0.1, abs=0.03)


def test_measured_thresholds_are_those_of_all_choices() -> None:
    """The share of strangers over every choice of 2 among 4 others, counted one by one."""
    scores = np.random.default_rng(0).permutation(400).reshape(100, 4).astype(float)
    value, _ = OpenSet(scores).threshold(2, 0.05)
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    best = np.array([[max(row[i], row[j]) for i, j in pairs] for row in scores])
    assert np.mean(best >= value) <= 0.05
    assert np.mean(best >= value - 2.0) > 0.04


@pytest.mark.parametrize(
    ("draw", "above"),
    [
        (lambda rng, shape: rng.standard_normal(shape), lambda t: 1 - NORMAL.cdf(t)),
        (lambda rng, shape: rng.exponential(size=shape), lambda t: exp(-t)),
        (lambda rng, shape: rng.uniform(size=shape), lambda t: max(0.0, 1 - t)),
    ],
    ids=["normal", "exponential", "uniform"],
)
@pytest.mark.parametrize("searched", [1_000, 100_000])
def test_extrapolated_thresholds_keep_strangers_out(
    draw: Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float64]],
    above: Callable[[float], float],
    searched: int,
) -> None:
    """Beyond the cohort the rate is kept, over cohorts drawn anew: by the exponential law, the heaviest, exactly."""
    rates = []
    for seed in range(10):
        value, extrapolated = OpenSet(draw(np.random.default_rng(seed), (200, 199))).threshold(searched, 1e-2)
        assert extrapolated
        rates.append(1 - (1 - above(value)) ** searched)
    assert np.median(rates) <= 0.012
    if above(1.0) == exp(-1):
        assert np.median(rates) > 0.004


def test_thresholds_rise_with_the_number_searched() -> None:
    scores = np.random.default_rng(1).standard_normal((150, 149))
    thresholds = [OpenSet(scores).threshold(searched, 1e-2) for searched in (1, 10, 100, 149, 150, 1_000, 10**6)]
    assert [is_beyond for _, is_beyond in thresholds] == [False] * 4 + [True] * 3
    for (lower, _), (higher, _) in pairwise(thresholds):
        assert lower <= higher + 0.3  # where the two ways meet they differ by the noise of the one


@pytest.mark.parametrize(("count", "known"), [(10, False), (51, True)])
def test_a_cohort_tells_thresholds_where_it_is_large_enough(count: int, known: bool) -> None:
    open_set = Cohort(voices(5, count, 16), 300).open_set
    assert (open_set is not None) is known
    if open_set is not None:
        value, extrapolated = open_set.threshold(1_000, 1e-2)
        assert extrapolated
        assert 0.5 < value < 2.0


@pytest.mark.parametrize(("searched", "rate"), [(0, 0.1), (1, 0.0), (1, 1.0)])
def test_thresholds_that_cannot_be(searched: int, rate: float) -> None:
    with pytest.raises(ValueError, match="no threshold"):
        OpenSet(np.eye(3)).threshold(searched, rate)
