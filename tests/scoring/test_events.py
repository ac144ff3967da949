from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.scoring.bootstrap import file_intervals
from service.scoring.events import event_counts, f_scores, segment_counts

LABELS = ("dog", "rain")
TRUTH = [("dog", 1.0, 2.0), ("dog", 5.0, 5.4), ("rain", 0.0, 10.0)]


def test_events_with_collars_by_hand() -> None:
    found = [
        ("dog", 1.2, 2.2),  # onset and offset 200 ms late: right
        ("dog", 5.0, 5.7),  # offset 300 ms late, where 200 ms (20 % are 80 ms) are allowed: wrong
        ("rain", 0.1, 8.0),  # offset 2 s early, 20 % of 10 s: right
        ("rain", 9.0, 9.5),  # nothing left to pair with: wrong
    ]
    assert event_counts(TRUTH, found, LABELS).tolist() == [[1, 1, 1], [1, 1, 0]]
    assert event_counts(TRUTH, found, LABELS, collar=0.3).tolist() == [[2, 0, 0], [1, 1, 0]]
    assert event_counts(TRUTH, found, LABELS, share=0.0).tolist() == [[1, 1, 1], [0, 2, 1]]
    assert event_counts(TRUTH, [("dog", 1.21, 2.0)], ("dog",)).tolist() == [[0, 1, 2]]


def test_as_many_pairs_as_there_can_be() -> None:
    """The first found event fits both true ones, the second only the first: taking the first that fits loses one."""
    truth = [("dog", 1.0, 2.0), ("dog", 1.2, 2.2)]
    found = [("dog", 1.1, 2.1), ("dog", 0.9, 1.9)]
    assert event_counts(truth, found, ("dog",)).tolist() == [[2, 0, 0]]


def test_segments_by_hand() -> None:
    found = [("dog", 0.5, 1.5), ("rain", 0.0, 9.0), ("dog", 7.0, 8.0)]
    # dog is true in seconds 1 and 5, found in 0, 1 and 7; rain true in 0 to 9, found in 0 to 8
    assert segment_counts(TRUTH, found, LABELS).tolist() == [[1, 2, 1], [9, 0, 1]]
    # of half seconds: true in 2, 3 and 10, found in 1, 2, 14 and 15
    assert segment_counts(TRUTH, found, ("dog",), 0.5).tolist() == [[1, 3, 2]]


def test_f_scores_by_hand() -> None:
    assert f_scores(np.array([10, 2, 2])) == pytest.approx([10 / 12, 10 / 12, 10 / 12])
    assert f_scores(np.array([[1, 3, 0], [0, 0, 0]])) == pytest.approx(np.array([[0.25, 1.0, 0.4], [0, 0, 0]]))


TIMES = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6)), max_size=5)


@given(TIMES, TIMES)
def test_pairs_against_every_assignment(first: list[tuple[int, int]], second: list[tuple[int, int]]) -> None:
    truth, found = ([("dog", s / 10, (s + n) / 10) for s, n in each] for each in (first, second))

    def fits(true: tuple[str, float, float], told: tuple[str, float, float]) -> bool:
        late = max(0.2, 0.2 * (true[2] - true[1]))
        return abs(true[1] - told[1]) <= 0.2 + 1e-9 and abs(true[2] - told[2]) <= late + 1e-9

    few, many = sorted((truth, found), key=len)
    orders = [zip(few, order, strict=False) for order in permutations(many)]
    rights = [sum(fits(*((a, b) if few is truth else (b, a))) for a, b in order) for order in orders]
    right = max(rights, default=0)
    assert event_counts(truth, found, ("dog",)).tolist() == [[right, len(found) - right, len(truth) - right]]


def test_intervals_over_files() -> None:
    counts = np.array([[[4, 0, 0]], [[0, 2, 2]], [[3, 1, 1]]])
    found = file_intervals({"f1": counts, "same": np.repeat(counts[:1], 3, axis=0)}, 20_000)
    low, high = found.intervals["f1"]
    assert f_scores(counts.sum(axis=(0, 1)))[2] == pytest.approx(0.7)
    assert (low, high) == (0.0, 1.0)  # all three draws are of one file 1 time in 27, more than the tail of 2.5 %
    assert found.intervals["same"] == (1.0, 1.0)
    assert found.resampled == "files"
