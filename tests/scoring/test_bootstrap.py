import numpy as np
import pytest

from service.scoring.bootstrap import class_intervals, trial_intervals
from service.scoring.metrics import equal_error_rate


def clips(count: int, right: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, labels and targets of two classes, answered right with this chance."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 2, count)
    answers = np.where(rng.uniform(size=count) < right, targets, 1 - targets)
    return np.eye(2)[answers], np.eye(2, dtype=bool)[targets], targets


def speaker_trials(speakers: int, seed: int, spread: float, each: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every pair of speakers once and so many target trials of each, whose level is the speakers' own."""
    rng = np.random.default_rng(seed)
    level = rng.normal(0, spread, speakers)
    left, right = np.triu_indices(speakers, 1)
    own = np.repeat(np.arange(speakers), each)
    pairs = np.concatenate([np.stack([own, own], 1), np.stack([left, right], 1)])
    targets = pairs[:, 0] == pairs[:, 1]
    return rng.normal(2.0 * targets + level[pairs].mean(axis=1), 1.0), targets, pairs


def test_accuracy_has_the_binomial_interval() -> None:
    found = class_intervals(*clips(400, 0.8), replicates=4000)
    scores, _, targets = clips(400, 0.8)
    share = np.mean(scores.argmax(axis=1) == targets)
    low, high = found.intervals["accuracy"]
    width = 1.96 * np.sqrt(share * (1 - share) / 400)
    assert (low, high) == (pytest.approx(share - width, abs=0.006), pytest.approx(share + width, abs=0.006))
    assert found.resampled == "clips"
    assert found.intervals["map"][0] < found.intervals["map"][1]


def test_groups_are_resampled_where_there_are_enough() -> None:
    """Eight copies of each of 50 clips say no more than the 50 do; of nine groups, clips are resampled."""
    scores, hot, targets = clips(50, 0.7)
    copies = [np.repeat(each, 8, axis=0) for each in (scores, hot, targets)]
    alone = class_intervals(scores, hot, targets, replicates=500)
    grouped = class_intervals(*copies, replicates=500, groups=np.repeat(np.arange(50), 8))
    few = class_intervals(*copies, replicates=500, groups=np.repeat(np.arange(8), 50))
    assert (alone.resampled, grouped.resampled, few.resampled) == ("clips", "groups", "clips")
    assert grouped.intervals["accuracy"] == pytest.approx(alone.intervals["accuracy"], abs=1e-9)
    assert few == class_intervals(*copies, replicates=500)


def test_intervals_are_the_seeds_own() -> None:
    a, b, c = (class_intervals(*clips(50, 0.7), replicates=300, seed=seed) for seed in (1, 1, 2))
    assert a == b
    assert a != c


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Over 100 draws of 25 speakers the equal error rate of very many lies within most 95 % intervals."""
    truth = np.mean([equal_error_rate(*speaker_trials(200, seed, 0.4)[:2])[0] for seed in range(1000, 1004)])
    held = 0
    for seed in range(100):
        low, high = trial_intervals(*speaker_trials(25, seed, 0.4), replicates=100).intervals["eer"]
        held += low <= truth <= high
    assert 84 <= held <= 99


def test_speakers_are_resampled_where_there_are_enough() -> None:
    """Trials that share speakers say less than as many trials of their own."""
    scores, targets, pairs = speaker_trials(30, 0, 1.5, each=40)
    grouped = trial_intervals(scores, targets, pairs, replicates=500)
    alone = trial_intervals(scores, targets, np.zeros_like(pairs), replicates=500)
    assert (grouped.resampled, alone.resampled) == ("speakers", "trials")
    (low, high), (inner_low, inner_high) = grouped.intervals["eer"], alone.intervals["eer"]
    assert high - low > 1.5 * (inner_high - inner_low)
    assert set(grouped.intervals) == {"eer", "min_dcf_1", "min_dcf_10"}


def test_draws_without_both_kinds_are_left_out() -> None:
    found = trial_intervals(np.array([0.9, 0.1]), np.array([True, False]), np.array([[0, 0], [0, 1]]), replicates=50)
    assert found.intervals["eer"] == (0.0, 0.0)
