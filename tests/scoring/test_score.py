import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.scoring.score import (
    activate,
    clip_scores,
    cosine,
    decide,
    enrol,
    l2_normalise,
    merge,
    rank,
    voiceprint,
)

VALUES = st.floats(-100, 100, width=32)
WINDOWS = hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 8)), elements=VALUES)


def test_windows_are_averaged() -> None:
    result = clip_scores([[0.2, 0.8], [0.6, 0.4]])
    assert result == pytest.approx([0.4, 0.6])
    assert result.dtype == np.float32


def test_or_the_highest_counts() -> None:
    assert clip_scores([[0.2, 0.8], [0.6, 0.4]], "max") == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize(
    ("spans", "merged"),
    [
        ([(0.0, 1.0)], [(0.0, 1.0)]),
        ([(0.0, 1.0), (1.0, 2.0), (2.0 + 1e-9, 3.0)], [(0.0, 3.0)]),
        ([(2.0, 3.0), (0.0, 1.0)], [(0.0, 1.0), (2.0, 3.0)]),
        ([(0.0, 3.0), (1.0, 2.0), (2.5, 4.0)], [(0.0, 4.0)]),
        ([], []),
    ],
)
def test_spans_that_touch_become_one(spans: list[tuple[float, float]], merged: list[tuple[float, float]]) -> None:
    assert merge(spans) == merged


@pytest.mark.parametrize("windows", [np.zeros((0, 3)), np.zeros(3), np.zeros((1, 2, 3))])
def test_windows_must_be_a_matrix(windows: np.ndarray) -> None:
    with pytest.raises(ValueError, match="windows must be"):
        clip_scores(windows)


def test_voiceprint_weighs_windows_by_direction_only() -> None:
    loud, quiet = np.array([10.0, 0.0]), np.array([0.0, 0.01])
    assert voiceprint([loud, quiet]) == pytest.approx([np.sqrt(0.5)] * 2)


def test_enrolment_is_the_renormalised_mean() -> None:
    a, b = l2_normalise([3.0, 4.0]), l2_normalise([4.0, 3.0])
    assert enrol([a, b]) == pytest.approx([np.sqrt(0.5)] * 2)
    assert enrol([a]) == pytest.approx(a)


@pytest.mark.parametrize("embeddings", [[], [[1.0, 2.0], [1.0]], [[[1.0]]]])
def test_enrolment_refuses(embeddings: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="embedding"):
        enrol(embeddings)


@given(WINDOWS)
def test_voiceprint_has_length_one_or_zero(windows: np.ndarray) -> None:
    length = float(np.linalg.norm(voiceprint(windows)))
    assert length == pytest.approx(1.0, abs=1e-5) or length == 0.0


@given(WINDOWS, st.floats(0.125, 8.0))
def test_voiceprint_ignores_scale(windows: np.ndarray, factor: float) -> None:
    rounded = np.round(windows)  # no window near the length that counts as none
    np.testing.assert_allclose(voiceprint(rounded * factor), voiceprint(rounded), atol=1e-4)


@given(hnp.arrays(np.float32, 5, elements=VALUES), hnp.arrays(np.float32, 5, elements=VALUES))
def test_cosine_is_bounded_and_symmetric(a: np.ndarray, b: np.ndarray) -> None:
    assert -1.0 <= cosine(a, b) <= 1.0
    assert cosine(a, b) == pytest.approx(cosine(b, a))


def test_cosine_known_values() -> None:
    assert cosine([1.0, 0.0], [5.0, 0.0]) == 1.0
    assert cosine([1.0, 0.0], [0.0, 2.0]) == 0.0
    assert cosine([1.0, 1.0], [-1.0, -1.0]) == pytest.approx(-1.0)
    assert cosine([0.0, 0.0], [1.0, 0.0]) == 0.0
    with pytest.raises(ValueError, match="one length"):
        cosine([1.0], [1.0, 2.0])


def test_decision_accepts_at_the_threshold() -> None:
    assert decide(0.5, 0.5) == "accept"
    assert decide(0.4999, 0.5) == "reject"


def test_rank_is_best_first_and_stable() -> None:
    labels = ["a", "b", "c", "d"]
    assert rank(labels, [0.1, 0.4, 0.4, 0.2], 3) == [("b", 0.4), ("c", 0.4), ("d", 0.2)]
    assert [label for label, _ in rank(labels, [0.1, 0.4, 0.4, 0.2])] == ["b", "c", "d", "a"]
    assert len(rank(labels, [0.0] * 4, 10)) == 4


def test_rank_refuses() -> None:
    with pytest.raises(ValueError, match="top_k"):
        rank(["a"], [1.0], -1)
    with pytest.raises(ValueError, match="labels need"):
        rank(["a", "b"], [1.0])


def test_activate_known_values() -> None:
    assert activate([[0.0, np.log(3.0)]], "softmax") == pytest.approx(np.array([[0.25, 0.75]]))
    assert activate([0.0, np.log(3.0)], "sigmoid") == pytest.approx([0.5, 0.75])


def test_temperature_divides() -> None:
    assert activate([0.0, 2 * np.log(3.0)], "softmax", 2.0) == pytest.approx([0.25, 0.75])
    with pytest.raises(ValueError, match="above 0"):
        activate([1.0], "softmax", 0.0)


@given(hnp.arrays(np.float32, (3, 4), elements=st.floats(-1000, 1000, width=32)))
def test_activate_stays_finite(logits: np.ndarray) -> None:
    softmax, sigmoid = activate(logits, "softmax"), activate(logits, "sigmoid")
    np.testing.assert_allclose(softmax.sum(axis=1), 1.0, atol=1e-5)
    assert np.isfinite(sigmoid).all()
    assert ((sigmoid >= 0) & (sigmoid <= 1)).all()
