import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.scoring.metrics import (
    accuracy,
    equal_error_rate,
    error_rates,
    min_dcf,
    threshold_at_false_accepts,
)

SCORES = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=30)


def trials(targets: list[float], others: list[float]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(targets + others), np.array([True] * len(targets) + [False] * len(others))


def test_accuracy() -> None:
    assert accuracy([[0.1, 0.9], [0.8, 0.2], [0.6, 0.4]], [1, 0, 1]) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="accuracy needs"):
        accuracy(np.zeros((0, 2)), [])


@pytest.mark.parametrize(
    ("targets", "others", "expected"),
    [
        ([0.9, 0.8], [0.1, 0.2], 0.0),  # separated
        ([0.1, 0.2], [0.9, 0.8], 1.0),  # the wrong way round
        ([0.5], [0.5], 0.5),  # one score for all: a coin
        ([0.1, 0.6, 0.7, 0.8], [0.65, 0.2, 0.3, 0.4], 0.25),
        ([0.9, 0.1], [0.5], 0.5),
    ],
)
def test_equal_error_rate_known_values(targets: list[float], others: list[float], expected: float) -> None:
    rate, threshold = equal_error_rate(*trials(targets, others))
    assert rate == pytest.approx(expected)
    assert min(targets + others) <= threshold <= max(targets + others) + 1e-6


def test_equal_error_rate_of_two_gaussians() -> None:
    rng = np.random.default_rng(0)
    rate, threshold = equal_error_rate(*trials(list(rng.normal(2, 1, 20_000)), list(rng.normal(0, 1, 20_000))))
    assert rate == pytest.approx(0.1587, abs=0.005)  # the standard normal's tail beyond 1
    assert threshold == pytest.approx(1.0, abs=0.03)


def test_threshold_gives_the_rate() -> None:
    rng = np.random.default_rng(1)
    scores, targets = trials(list(rng.normal(1, 1, 500)), list(rng.normal(0, 1, 500)))
    rate, threshold = equal_error_rate(scores, targets)
    assert np.mean(scores[targets] < threshold) == pytest.approx(rate, abs=0.01)
    assert np.mean(scores[~targets] >= threshold) == pytest.approx(rate, abs=0.01)


@given(SCORES, SCORES, st.floats(0.125, 8.0))
def test_rates_do_not_depend_on_scale(targets: list[float], others: list[float], factor: float) -> None:
    scores, wanted = trials(targets, others)
    rate, _ = equal_error_rate(scores, wanted)
    assert 0.0 <= rate <= 1.0
    assert equal_error_rate(scores * 2.0, wanted)[0] == pytest.approx(rate)
    assert equal_error_rate(-scores, ~wanted)[0] == pytest.approx(rate, abs=1e-9)
    assert 0.0 <= min_dcf(scores, wanted) <= 1.0 + 1e-12


@given(SCORES, SCORES)
def test_error_rates_are_monotonic(targets: list[float], others: list[float]) -> None:
    rates = error_rates(*trials(targets, others))
    misses, false_accepts = rates.misses, rates.false_accepts
    assert (np.diff(misses) >= 0).all()
    assert (np.diff(false_accepts) <= 0).all()
    assert (misses[0], false_accepts[0]) == (0.0, 1.0)
    assert (misses[-1], false_accepts[-1]) == (1.0, 0.0)


def test_min_dcf_known_values() -> None:
    assert min_dcf(*trials([0.9], [0.1])) == 0.0
    assert min_dcf(*trials([0.5], [0.5])) == pytest.approx(1.0)
    # One target of four lies below every non-target: accept the other three, miss 0.25 at no false accept.
    scores, targets = trials([0.1, 0.6, 0.7, 0.8], [0.2, 0.3, 0.4])
    assert min_dcf(scores, targets) == pytest.approx(0.25)
    assert min_dcf(scores, targets, c_miss=10.0) == pytest.approx(0.25)
    # With a prior of one half, accepting all is as good as refusing the target.
    assert min_dcf(scores, targets, p_target=0.5) == pytest.approx(0.25)


@pytest.mark.parametrize(("scores", "targets"), [([0.1], [True]), ([0.1, np.nan], [True, False]), ([0.1, 0.2], [True])])
def test_error_rates_refuse(scores: list[float], targets: list[bool]) -> None:
    with pytest.raises(ValueError, match=r"trials|finite|\[N\]"):
        error_rates(scores, targets)


def slow_rates(scores: np.ndarray, targets: np.ndarray) -> list[tuple[float, float]]:
    """Misses and false accepts at every score and above all of them, counted one by one."""
    thresholds = [*sorted(set(scores)), np.inf]
    misses = [sum(s < t for s, y in zip(scores, targets, strict=True) if y) / targets.sum() for t in thresholds]
    false = [sum(s >= t for s, y in zip(scores, targets, strict=True) if not y) / (~targets).sum() for t in thresholds]
    return list(zip(misses, false, strict=True))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=20), st.lists(st.integers(-3, 4), min_size=1, max_size=20))
def test_rates_as_counted_one_by_one(targets: list[float], others: list[float]) -> None:
    scores, wanted = trials(targets, others)
    counted = slow_rates(scores, wanted)
    rates = error_rates(scores, wanted)
    assert list(zip(rates.misses, rates.false_accepts, strict=True)) == [pytest.approx(pair) for pair in counted]
    for c_miss in (1.0, 10.0):
        costs = [(c_miss * 0.01 * miss + 0.99 * false) / min(c_miss * 0.01, 0.99) for miss, false in counted]
        assert min_dcf(scores, wanted, c_miss=c_miss) == pytest.approx(min(costs))


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=12),
    st.lists(st.integers(-3, 4), min_size=1, max_size=12),
    st.integers(0, 2**31),
)
def test_weights_are_repetitions(targets: list[float], others: list[float], seed: int) -> None:
    scores, wanted = trials(targets, others)
    weights = np.random.default_rng(seed).integers(0, 3, (4, len(scores)))
    weights[:, [0, -1]] += 1  # one target and one other trial are left
    rates = error_rates(scores, wanted, weights)
    found = np.stack([rates.equal()[0], rates.min_dcf(), rates.min_dcf(c_miss=10.0)], axis=1)
    for counts, (eer, dcf_1, dcf_10) in zip(weights, found, strict=True):
        repeated = np.repeat(scores, counts), np.repeat(wanted, counts)
        # Thresholds that no trial is left at move no decision.
        assert dcf_1 == pytest.approx(min_dcf(*repeated))
        assert dcf_10 == pytest.approx(min_dcf(*repeated, c_miss=10.0))
        assert eer == pytest.approx(equal_error_rate(*repeated)[0])


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.1, 0.5, 1.0])
def test_threshold_at_false_accepts_is_the_lowest(rate: float) -> None:
    rng = np.random.default_rng(5)
    scores, targets = trials(list(rng.normal(1, 1, 200)), list(np.round(rng.normal(0, 1, 300), 1)))
    threshold = threshold_at_false_accepts(scores, targets, rate)
    others = np.sort(scores[~targets])
    assert np.mean(others >= threshold) <= rate
    below = others[others < threshold]
    if len(below):
        assert np.mean(others >= below[-1]) > rate
    with pytest.raises(ValueError, match="within 0 and 1"):
        threshold_at_false_accepts(scores, targets, 1.1)
