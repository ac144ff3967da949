import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.scoring.classes import (
    average_precision,
    average_precisions,
    class_report,
    confusion_matrix,
    mean_average_precision,
)

RANKED = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30)


def slow_average_precision(scores: np.ndarray, hits: np.ndarray) -> float:
    """The definition: for each hit, among the clips that score as high as it or higher, the share of hits."""
    precisions = []
    for score, hit in zip(scores, hits, strict=True):
        if hit:
            above = [other for other, value in zip(hits, scores, strict=True) if value >= score]
            precisions.append(sum(above) / len(above))
    return sum(precisions) / len(precisions) if precisions else float("nan")


@given(RANKED)
def test_average_precision_by_its_definition(clips: list[tuple[int, bool]]) -> None:
    scores, hits = np.array([clip[0] for clip in clips]), np.array([clip[1] for clip in clips])
    assert average_precision(scores, hits) == pytest.approx(slow_average_precision(scores, hits), nan_ok=True)


@given(RANKED, st.integers(0, 2**31))
def test_weights_are_repetitions(clips: list[tuple[int, bool]], seed: int) -> None:
    scores, hits = np.array([clip[0] for clip in clips]), np.array([clip[1] for clip in clips])
    weights = np.random.default_rng(seed).integers(0, 3, (5, len(clips)))
    expected = [slow_average_precision(np.repeat(scores, row), np.repeat(hits, row)) for row in weights]
    assert average_precision(scores, hits, weights) == pytest.approx(np.array(expected), nan_ok=True)


def test_average_precision_known_values() -> None:
    assert average_precision([0.9, 0.8, 0.7], [True, False, True]) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision([0.5, 0.5], [True, False]) == 0.5  # a tie counts against
    assert np.isnan(average_precision([0.5], [False]))


def test_mean_leaves_out_classes_that_are_not_there() -> None:
    scores = np.array([[0.9, 0.1, 0.3], [0.2, 0.8, 0.4]])
    hot = np.array([[True, False, False], [True, True, False]])
    assert average_precisions(scores, hot) == pytest.approx([1.0, 1.0, np.nan], nan_ok=True)
    assert mean_average_precision(scores, hot) == 1.0
    with pytest.raises(ValueError, match="clips with labels"):
        mean_average_precision(scores, np.zeros_like(hot))


def test_confusion_matrix_counts_rows_by_truth() -> None:
    counts = confusion_matrix([0, 1, 1, 2], [0, 0, 1, 1], 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]
    with pytest.raises(ValueError, match="from 0 to 2"):
        confusion_matrix([3], [0], 3)
    with pytest.raises(ValueError, match=r"\[N\] both"):
        confusion_matrix([0], [0, 1], 3)


def test_class_report_known_values() -> None:
    said = np.array([[True, False], [True, False], [False, True], [False, False]])
    hot = np.array([[True, False], [False, True], [False, True], [False, True]])
    report = class_report(said, hot)
    assert report.precision.tolist() == [0.5, 1.0]
    assert report.recall == pytest.approx([1.0, 1 / 3])
    assert report.f1 == pytest.approx([2 / 3, 0.5])
    assert report.support.tolist() == [1, 3]
    empty = class_report(np.zeros((2, 1)), np.zeros((2, 1)))
    assert (empty.precision[0], empty.recall[0], empty.f1[0]) == (0.0, 0.0, 0.0)


def test_shapes_are_refused() -> None:
    for function in (average_precisions, class_report):
        with pytest.raises(ValueError, match=r"\[N, C\] both"):
            function(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"\[N\] both"):
        average_precision([0.1], [True, False])
