from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.training.answers import ClassAnswers, TrialAnswers
from service.training.datasets.dataset import Span, Trial
from service.training.datasets.trials import speakers_of
from service.training.figures import class_detail, class_figures, trial_figures


def answers(logits: list[list[float]], labels: list[tuple[int, ...]]) -> ClassAnswers:
    hot = np.zeros((len(labels), len(logits[0])), dtype=bool)
    for row, each in enumerate(labels):
        hot[row, list(each)] = True
    return ClassAnswers([np.array([row], np.float32) for row in logits], np.array([each[0] for each in labels]), hot)


def test_one_label_a_clip() -> None:
    told = answers([[3, 0, 0], [0, 3, 0], [2, 1, 0], [0, 0, 1]], [(0,), (1,), (1,), (2,)])
    figures = class_figures(told, ("a", "b", "c"), "softmax", 1.0, bootstrap=200)
    assert (figures["clips"], figures["accuracy"]) == (4, 0.75)
    assert figures["map"] == pytest.approx((1 + 1 + 1) / 3, abs=1e-4)
    assert figures["per_class"] == {"a": 1.0, "b": 0.5, "c": 1.0}
    assert figures["bootstrap"] == {"level": 0.95, "replicates": 200, "resampled": "clips"}
    low, high = figures["intervals"]["accuracy"]
    assert 0 <= low < 0.75 < high <= 1
    detail = class_detail(told, ("a", "b", "c"), "softmax", 1.0)
    assert detail["confusion"]["counts"] == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert detail["classes"]["a"] == {"clips": 1, "precision": 0.5, "recall": 1.0, "f1": 0.6667, "average_precision": 1}


def test_several_labels_a_clip() -> None:
    told = answers([[3, 2, -3], [-1, 3, -3], [2, -2, -3]], [(0, 1), (1,), (0,)])
    figures = class_figures(told, ("a", "b", "c"), "sigmoid", 1.0, bootstrap=100)
    assert "accuracy" not in figures
    assert figures["map"] == 1.0
    assert figures["per_class"] == {"a": 1.0, "b": 1.0}
    assert set(figures["intervals"]) == {"map"}
    detail = class_detail(told, ("a", "b", "c"), "sigmoid", 1.0)
    assert set(detail) == {"classes"}
    assert detail["classes"]["c"]["average_precision"] is None
    assert detail["classes"]["b"]["recall"] == 1.0


def test_trial_intervals_hold_the_figure() -> None:
    rng = np.random.default_rng(0)
    targets = np.arange(60) < 30
    told = TrialAnswers("clean", rng.normal(2.0 * targets, 1.0), targets, np.zeros((60, 2), np.int64), 0)
    figures = trial_figures(told, 1.0, bootstrap=300)
    low, high = figures["intervals"]["eer"]
    assert low <= figures["eer"] <= high
    assert figures["bootstrap"]["resampled"] == "trials"
    assert "intervals" not in trial_figures(told, 1.0)


def test_speakers_are_those_that_target_trials_join() -> None:
    a, b, c, d, e = (Span(Path(name)) for name in "abcde")
    trials = [Trial(True, a, b), Trial(False, a, d), Trial(True, c, b), Trial(False, e, c), Trial(True, d, d)]
    assert speakers_of(trials).tolist() == [[0, 0], [0, 1], [0, 0], [2, 0], [1, 1]]


def test_windows_count_as_the_server_counts_them() -> None:
    windows = np.array([[4.0, 0.0], [0.0, 2.0]], np.float32)
    answers = ClassAnswers([windows], np.array([0]), np.array([[True, False]]), "max")
    chances = 1 / (1 + np.exp(-windows))
    np.testing.assert_allclose(answers.scores("sigmoid")[0], chances.max(axis=0), rtol=1e-6)
    np.testing.assert_allclose(replace(answers, aggregate="mean").scores("sigmoid")[0], chances.mean(axis=0), rtol=1e-6)
