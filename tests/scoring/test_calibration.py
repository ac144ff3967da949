import numpy as np
import pytest

from service.scoring.calibration import (
    binary_log_likelihood,
    fit_logistic,
    fit_temperature,
    log_likelihood_ratio,
    negative_log_likelihood,
)


def test_log_likelihood_ratio_is_a_line() -> None:
    assert log_likelihood_ratio(0.5, 10.0, -3.0) == 2.0


@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_fit_finds_the_temperature(true: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 5))
    gumbel = -np.log(-np.log(rng.uniform(size=logits.shape)))
    targets = (logits + gumbel).argmax(axis=1)  # drawn from softmax(logits)
    assert fit_temperature(logits * true, targets) == pytest.approx(true, rel=0.05)


def test_fit_never_worsens_the_likelihood() -> None:
    rng = np.random.default_rng(1)
    logits, targets = rng.normal(0, 5, (50, 3)), rng.integers(0, 3, 50)
    fitted = fit_temperature(logits, targets)
    before = negative_log_likelihood(logits, targets)
    assert negative_log_likelihood(logits / fitted, targets) <= before + 1e-9


def test_fit_of_independent_classes() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 2, (10_000, 4))
    targets = rng.uniform(size=logits.shape) < 1 / (1 + np.exp(-logits))
    assert fit_temperature(logits * 2.0, targets, binary_log_likelihood) == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("others", [1_000, 20_000])
def test_logistic_of_two_gaussians(others: int) -> None:
    """log N(x; 1, 1) / N(x; -1, 1) = 2 x, however many non-target trials there are."""
    rng = np.random.default_rng(3)
    scores = np.concatenate([rng.normal(1, 1, 5_000), rng.normal(-1, 1, others)])
    slope, intercept = fit_logistic(scores, np.arange(len(scores)) < 5_000)
    assert slope == pytest.approx(2.0, rel=0.1)
    assert intercept == pytest.approx(0.0, abs=0.1)


def test_logistic_stays_finite_when_separated() -> None:
    slope, intercept = fit_logistic([0.9, 0.8, 0.1, 0.2], [True, True, False, False])
    assert np.isfinite([slope, intercept]).all()
    assert slope > 0
    assert log_likelihood_ratio(0.85, slope, intercept) > 0 > log_likelihood_ratio(0.15, slope, intercept)


def test_logistic_needs_both_kinds() -> None:
    with pytest.raises(ValueError, match="target and non-target"):
        fit_logistic([0.5], [True])


def test_logistic_does_not_depend_on_scale() -> None:
    rng = np.random.default_rng(4)
    scores = np.concatenate([rng.normal(1, 1, 500), rng.normal(-1, 1, 500)])
    targets = np.arange(1000) < 500
    slope, intercept = fit_logistic(scores, targets)
    narrow_slope, narrow_intercept = fit_logistic(0.999 + scores * 1e-4, targets)
    assert narrow_slope == pytest.approx(slope * 1e4, rel=1e-3)
    assert narrow_slope * 0.999 + narrow_intercept == pytest.approx(intercept, abs=1e-3)
