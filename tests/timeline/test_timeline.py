import math
from itertools import groupby, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidRequest
from service.timeline.parameters import Parameters
from service.timeline.timeline import Event, Timeline

LABELS = ("dog", "background", "rain")


def events_of(scores: object, window: float, seconds: float, parameters: Parameters, labels: tuple[str, ...] = LABELS):
    timeline = Timeline(labels, window, parameters)
    return timeline.add(scores) + timeline.finish(seconds)


def slow_cells(scores: np.ndarray, window: float, hop: float, seconds: float) -> list[np.ndarray]:
    """The contract's words, cell by cell: the mean score of the windows that hold the cell's middle."""
    starts = [k * hop for k in range(len(scores))]
    starts[-1] = min(starts[-1], max(seconds - window, 0.0))
    cells = []
    for cell in range(math.ceil(seconds / hop - 1e-6)):
        middle = (cell * hop + min((cell + 1) * hop, seconds)) / 2
        holding = [
            row
            for start, row in zip(starts, scores, strict=True)
            if start <= middle + 1e-6 and (middle < start + window - 1e-6 or start == starts[-1])
        ]
        cells.append(np.mean(holding, axis=0))
    return cells


def slow_events(scores: np.ndarray, window: float, seconds: float, p: Parameters) -> list[Event]:
    """All cells at once, label by label: smoothing, hysteresis, gaps, lengths."""
    cells, told = slow_cells(scores, window, p.hop, seconds), p.told()
    near = [
        [cells[j] for j in range(len(cells)) if abs(i - j) * p.hop <= p.smoothing / 2 + 1e-6] for i in range(len(cells))
    ]
    smooth = [np.mean(each, axis=0) for each in near]
    found = []
    for c, label in enumerate(LABELS):
        high = p.threshold.get(label, 0.5) if isinstance(p.threshold, dict) else p.threshold
        low = high if p.hysteresis is None else min(p.hysteresis, high)
        on, flags = False, []
        for cell in smooth:
            on = cell[c] >= (low if on else high)
            flags.append(on)
        runs, place = [], 0
        for flag, group in groupby(flags):
            length = len(list(group))
            if flag:
                runs.append([place, place + length])
            place += length
        merged = runs[:1]
        for start, stop in runs[1:]:
            if (start - merged[-1][1]) * p.hop < told["merge_gap"] - 1e-6:
                merged[-1][1] = stop
            else:
                merged.append([start, stop])
        for start, stop in merged:
            if label != "background" and (stop - start) * p.hop >= told["min_seconds"] - 1e-6:
                score = float(np.mean([cell[c] for cell in smooth[start:stop]]))
                found.append(Event(label, start * p.hop, min(stop * p.hop, seconds), score))
    return sorted(found, key=lambda event: (event.end, event.start, LABELS.index(event.label)))


def test_a_table_worked_by_hand() -> None:
    """Windows of 1 s every 0.5 s over 2.7 s: starts 0, 0.5, 1, 1.5 and, flush with the end, 1.7.

    Cells and the windows that hold their middles: 0.25: 0; 0.75: 0, 1; 1.25: 1, 2; 1.75: 2, 3, 4; 2.25: 3, 4; the last
    is 2.5 to 2.7, middle 2.6: 4. (Its window 3 ends at 2.5.)
    """
    scores = [[0.2, 0.9, 0.9], [0.8, 0.9, 0.1], [1.0, 0.9, 0.1], [0.1, 0.9, 0.1], [0.7, 0.9, 0.9]]
    # dog: 0.2, 0.5, 0.9, 0.6, 0.4, 0.7; rain: 0.9, 0.5, 0.1, 0.3667, 0.5, 0.9
    found = events_of(scores, 1.0, 2.7, Parameters())
    assert [(e.label, e.start, e.end) for e in found] == [
        ("rain", 0.0, 1.0),
        ("dog", 0.5, 2.0),
        ("rain", 2.0, 2.7),
        ("dog", 2.5, 2.7),
    ]
    assert [e.score for e in found] == pytest.approx([0.7, 2.0 / 3, 0.7, 0.7])


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (Parameters(), [(0.5, 1.0), (2.0, 2.5), (3.5, 4.0)]),
        (Parameters(threshold=0.6), [(2.0, 2.5)]),
        (Parameters(threshold={"dog": 0.6}), [(2.0, 2.5)]),
        (Parameters(threshold={"rain": 0.6}), [(0.5, 1.0), (2.0, 2.5), (3.5, 4.0)]),
        (Parameters(hysteresis=0.3), [(0.5, 1.0), (2.0, 3.0), (3.5, 4.0)]),
        (Parameters(merge_gap=1.0), [(0.5, 1.0), (2.0, 2.5), (3.5, 4.0)]),  # gaps of 1 s are not shorter than 1 s
        (Parameters(merge_gap=1.01), [(0.5, 4.0)]),
        (Parameters(hysteresis=0.3, min_seconds=1.0), [(2.0, 3.0)]),
        (Parameters(merge_gap=1.01, min_seconds=3.5), [(0.5, 4.0)]),  # gaps are closed first
        (Parameters(smoothing=1.0, threshold=0.39), [(2.0, 3.0)]),  # 0.25, 0.17, 0.17, 0.3, 0.4, 0.4, 0.27, 0.25
    ],
)
def test_each_parameter_by_hand(parameters: Parameters, expected: list[tuple[float, float]]) -> None:
    dog = [0.0, 0.5, 0.0, 0.0, 0.9, 0.3, 0.0, 0.5]
    found = events_of([[score] for score in dog], 0.5, 4.0, parameters, ("dog",))
    assert [(event.start, event.end) for event in found] == expected


def test_smoothing_by_hand() -> None:
    found = events_of([[1.0], [0.0], [0.5], [0.0]], 0.5, 2.0, Parameters(smoothing=1.0, threshold=0.4), ("dog",))
    assert found == [Event("dog", 0.0, 1.0, pytest.approx((0.5 + 0.5) / 2))]  # 1/2, 1.5/3, 0.5/3, 0.5/2


def test_a_clip_shorter_than_the_window_and_nothing_at_all() -> None:
    assert events_of([[0.9]], 5.0, 0.3, Parameters(), ("dog",)) == [Event("dog", 0.0, 0.3, 0.9)]
    assert events_of([[0.9]], 5.0, 1.2, Parameters(), ("dog",)) == [Event("dog", 0.0, 1.2, pytest.approx(0.9))]
    assert Timeline(("dog",), 5.0, Parameters()).finish(0.0) == []
    assert events_of(np.full((9, 1), 0.9), 1.0, 5.0, Parameters(), ("background",)) == []


LEVELS = st.sampled_from([0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0])
PARAMETERS = st.builds(
    Parameters,
    hop=st.just(0.5),
    threshold=st.one_of(LEVELS, st.dictionaries(st.sampled_from(LABELS), LEVELS)),
    hysteresis=st.none() | LEVELS,
    smoothing=st.sampled_from([0.0, 0.4, 1.0, 2.3]),
    min_seconds=st.sampled_from([None, 0.0, 0.5, 1.2]),
    merge_gap=st.sampled_from([None, 0.0, 0.75, 2.0]),
)


@st.composite
def recordings(draw: st.DrawFn) -> tuple[np.ndarray, float, float]:
    """Scores of the windows of a recording, the window's length, the recording's."""
    window, seconds = draw(st.sampled_from([0.5, 0.75, 1.0, 1.28, 5.0])), draw(st.integers(1, 140)) / 10
    count = 1 if seconds <= window else 1 + math.ceil((seconds - window) / 0.5 - 1e-6)
    rows = st.lists(st.lists(st.integers(0, 10), min_size=3, max_size=3), min_size=count, max_size=count)
    return np.array(draw(rows)) / 10, window, seconds


def rounded(events: list[Event]) -> list[tuple[object, ...]]:
    return [(e.label, round(e.start, 6), round(e.end, 6), round(e.score, 9)) for e in events]


@given(recordings(), PARAMETERS)
def test_equals_the_words_of_the_rule(recording: tuple[np.ndarray, float, float], parameters: Parameters) -> None:
    scores, window, seconds = recording
    # Levels away from what means of tenths come to, so that no rounding decides.
    scores = scores + np.random.default_rng(0).uniform(0, 1e-3, scores.shape)
    found = events_of(scores, window, seconds, parameters)
    assert rounded(found) == rounded(slow_events(scores, window, seconds, parameters))


@given(recordings(), PARAMETERS, st.lists(st.integers(0, 40), max_size=5))
def test_chunks_change_nothing(
    recording: tuple[np.ndarray, float, float], parameters: Parameters, cuts: list[int]
) -> None:
    scores, window, seconds = recording
    timeline, found = Timeline(LABELS, window, parameters), []
    for piece in np.split(scores, sorted(cuts)):
        found += timeline.add(piece)
    found += timeline.finish(seconds)
    assert found == events_of(scores, window, seconds, parameters)


@given(recordings(), PARAMETERS)
def test_order_and_no_overlap_within_a_label(
    recording: tuple[np.ndarray, float, float], parameters: Parameters
) -> None:
    scores, window, seconds = recording
    found = events_of(scores, window, seconds, parameters)
    assert [(e.end, e.start) for e in found] == sorted((e.end, e.start) for e in found)
    for label in LABELS:
        own = [event for event in found if event.label == label]
        assert not (own and label == "background")
        assert all(0 <= event.start < event.end <= seconds for event in own)
        assert all(a.end < b.start for a, b in pairwise(own))


def test_an_event_is_told_as_soon_as_no_window_can_change_it() -> None:
    timeline = Timeline(("dog",), 1.0, Parameters())
    rows = [[0.9], [0.9], [0.0], [0.0], [0.0], [0.0]]  # cells 0.9, 0.9, 0.45, 0, ...: over with cell 2
    told = [len(timeline.add([row])) for row in rows]
    # Cell 2 is known once window 3 is known to start on the grid, which is when window 4 has come.
    assert told == [0, 0, 0, 0, 1, 0]


def test_memory_does_not_grow() -> None:
    timeline = Timeline(("dog",), 5.0, Parameters(smoothing=3.0))
    timeline.add(np.full((10_000, 1), 0.9))
    assert len(timeline._recent) == 10
    assert len(timeline._smoothing._near) == 7
    assert timeline.finish(5_004.5) == [Event("dog", 0.0, 5_004.5, pytest.approx(0.9))]


def test_windows_have_to_meet() -> None:
    with pytest.raises(InvalidRequest, match=r"hop: expected at most 1\.28 s"):
        Timeline(("dog",), 1.28, Parameters(hop=2.0))
