"""Figures of merit and fits beside those of scikit-learn."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_curve

from service.scoring.calibration import cllr, fit_logistic, isotonic, min_cllr
from service.scoring.metrics import equal_error_rate, min_dcf


@pytest.fixture(params=[0, 1, 2])
def trials(request: pytest.FixtureRequest) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores with ties, 300 target and 700 other trials."""
    rng = np.random.default_rng(request.param)
    scores = np.round(np.concatenate([rng.normal(1.0, 0.8, 300), rng.normal(-0.5, 1.0, 700)]), 2)
    return scores, np.arange(1000) < 300


def test_rates(trials: tuple[NDArray[np.float64], NDArray[np.bool_]]) -> None:
    false_accepts, hits, _ = roc_curve(trials[1], trials[0], drop_intermediate=False)
    misses = 1 - hits
    cross = np.interp(0.0, (false_accepts - misses), false_accepts)
    assert equal_error_rate(*trials)[0] == pytest.approx(cross, abs=1e-9)
    assert min_dcf(*trials) == pytest.approx(np.min(0.01 * misses + 0.99 * false_accepts) / 0.01)


def test_logistic_regression(trials: tuple[NDArray[np.float64], NDArray[np.bool_]]) -> None:
    scores, targets = trials
    model = LogisticRegression(C=1e9, class_weight="balanced", tol=1e-8).fit(scores[:, None], targets)
    slope, intercept = fit_logistic(scores, targets)
    assert slope == pytest.approx(float(model.coef_[0, 0]), rel=0.02)  # a small ridge holds it back
    assert intercept == pytest.approx(float(model.intercept_[0]), abs=0.02)


def test_isotonic_regression(trials: tuple[NDArray[np.float64], NDArray[np.bool_]]) -> None:
    values = np.random.default_rng(0).permutation(trials[0])
    weights = np.random.default_rng(1).uniform(0.1, 3.0, len(values))
    places = np.arange(len(values))
    expected = IsotonicRegression().fit(places, values, weights).predict(places)
    np.testing.assert_allclose(isotonic(values, weights), expected, atol=1e-9)


def test_costs_of_ratios(trials: tuple[NDArray[np.float64], NDArray[np.bool_]]) -> None:
    scores, targets = trials
    balanced = np.where(targets, 0.5 / targets.sum(), 0.5 / (~targets).sum())
    ratios = 1.7 * scores - 0.2
    expected = log_loss(targets, 1 / (1 + np.exp(-ratios)), sample_weight=balanced) / np.log(2)
    assert cllr(ratios, targets) == pytest.approx(expected)
    best = IsotonicRegression().fit(scores, targets, balanced).predict(scores)
    assert min_cllr(scores, targets) == pytest.approx(
        log_loss(targets, best, sample_weight=balanced) / np.log(2), abs=1e-6
    )
    assert min_cllr(scores, targets) <= cllr(np.polyval(fit_logistic(scores, targets), scores), targets)
    assert min_cllr(np.exp(scores), targets) == pytest.approx(min_cllr(scores, targets))


def test_costs_that_are_known() -> None:
    """Always 0 costs 1 bit; Bruemmer and du Preez: a ratio of log 3 for a target trial costs log2(4/3)."""
    assert cllr([0.0, 0.0], [True, False]) == pytest.approx(1.0)
    assert cllr([np.log(3), -np.log(3)], [True, False]) == pytest.approx(np.log2(4 / 3))
    assert min_cllr([0.2, 0.9], [False, True]) == 0.0
    assert min_cllr([0.9, 0.2], [False, True]) == pytest.approx(1.0)
