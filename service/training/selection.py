"""Judges an adapter on the selection part: which epoch was best, which threshold and calibration to ship.

The report part is out of reach here.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from service.scoring.calibration import (
    binary_log_likelihood,
    fit_logistic,
    fit_temperature,
    negative_log_likelihood,
)
from service.scoring.classes import mean_average_precision
from service.scoring.metrics import accuracy, equal_error_rate, threshold_at_false_accepts
from service.training.answers import ClassAnswers, TrialAnswers, answer_clips, answer_trials
from service.training.datasets.dataset import Clip, Distortion, TrialList
from service.training.datasets.trials import selection_trials
from service.training.figures import DECIMALS, class_figures, trial_figures
from service.training.inference import Inference
from service.training.recordings import Recordings

NOISE_SNR_DB = 15.0  # of the noisy selection trials
NOISE_TILT = 0.6  # largest |a| of their first-order equaliser
NOISE_EVERY = 4  # one of so many noise files is kept for selection


class Judge(ABC):
    """Compares epochs and derives what a bundle needs beside its weights."""

    figure: str  # name of the figure that is compared

    @abstractmethod
    def judge(self, inference: Inference) -> tuple[float, float]:
        """Figures of one epoch, larger is better: the main one, and one that breaks ties."""

    @abstractmethod
    def settle(self, inference: Inference, calibrate: bool) -> dict[str, Any]:
        """Manifest fields (`threshold`, `operating_points`, `calibration`) and, under `metrics`, the part's figures."""


class ClassJudge(Judge):
    """Accuracy, or mean average precision where clips have several labels; ties broken by cross entropy."""

    def __init__(
        self,
        clips: Sequence[Clip],
        labels: Sequence[str],
        activation: Literal["softmax", "sigmoid"],
        recordings: Recordings,
    ) -> None:
        self.figure = "mAP" if any(clip.also for clip in clips) else "accuracy"
        self._clips = clips
        self._labels = labels
        self._activation = activation
        self._recordings = recordings

    def judge(self, inference: Inference) -> tuple[float, float]:
        answers = self._answers(inference)
        scores = answers.scores(self._activation)
        if answers.multi_label:
            return mean_average_precision(scores, answers.hot), -self._loss(answers)
        return accuracy(scores, answers.targets), -self._loss(answers)

    def settle(self, inference: Inference, calibrate: bool) -> dict[str, Any]:
        answers = self._answers(inference)
        temperature = 1.0
        fields: dict[str, Any] = {}
        if calibrate:
            temperature = round(self._fit(answers), DECIMALS)
            fields["calibration"] = {"temperature": temperature}
        figures = class_figures(answers, self._labels, self._activation, temperature)
        del figures["per_class"]
        return {**fields, "metrics": figures}

    def _answers(self, inference: Inference) -> ClassAnswers:
        return answer_clips(inference, self._clips, self._recordings)

    def _loss(self, answers: ClassAnswers) -> float:
        if self._activation == "softmax":
            return negative_log_likelihood(answers.mean_logits(), answers.targets)
        return binary_log_likelihood(answers.mean_logits(), answers.hot.astype(np.float64))

    def _fit(self, answers: ClassAnswers) -> float:
        if self._activation == "softmax":
            return fit_temperature(answers.mean_logits(), answers.targets)
        return fit_temperature(answers.mean_logits(), answers.hot.astype(np.float64), binary_log_likelihood)


class TrialJudge(Judge):
    """Mean equal error rate of the clean trials and, where there are noises, of noisy ones.

    The threshold is that of the equal error rate or, where a false-accept rate is given, the lowest one that keeps to
    it; both are told as operating points.
    """

    figure = "1 - EER"

    def __init__(
        self,
        clips: Sequence[Clip],
        noises: Sequence[Path],
        seed: int,
        recordings: Recordings,
        false_accept_rate: float | None = None,
    ) -> None:
        clean = selection_trials(tuple(clips), "clean")
        self._lists = [clean]
        if noises:
            self._lists.append(TrialList("noisy", clean.trials, _distortions(clean.paths, noises, seed)))
        self._recordings = recordings
        self._false_accept_rate = false_accept_rate

    def judge(self, inference: Inference) -> tuple[float, float]:
        answers = self._answers(inference)
        rates = [equal_error_rate(each.scores, each.targets)[0] for each in answers]
        gaps = [float(each.scores[each.targets].mean() - each.scores[~each.targets].mean()) for each in answers]
        return 1.0 - float(np.mean(rates)), float(np.mean(gaps))

    def settle(self, inference: Inference, calibrate: bool) -> dict[str, Any]:
        answers = self._answers(inference)
        scores = np.concatenate([each.scores for each in answers])
        targets = np.concatenate([each.targets for each in answers])
        points = {"equal_error": _threshold(equal_error_rate(scores, targets)[1])}
        if self._false_accept_rate is not None:
            found = threshold_at_false_accepts(scores, targets, self._false_accept_rate)
            points[f"false_accept_{self._false_accept_rate:g}"] = _threshold(found)
        threshold = list(points.values())[-1]
        fields: dict[str, Any] = {"threshold": threshold, "operating_points": points}
        if calibrate:
            slope, intercept = fit_logistic(scores, targets)
            fields["calibration"] = {"slope": round(slope, DECIMALS), "intercept": round(intercept, DECIMALS)}
        return {**fields, "metrics": {each.name: trial_figures(each, threshold) for each in answers}}

    def _answers(self, inference: Inference) -> list[TrialAnswers]:
        return answer_trials(inference, self._lists, self._recordings)


def _threshold(score: float) -> float:
    return round(float(np.clip(score, -1.0, 1.0)), DECIMALS)


def split_noises(noises: Sequence[Path]) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Noise files for training, and those kept for the selection part's noisy trials."""
    if len(noises) < NOISE_EVERY:
        return tuple(noises), ()
    kept = tuple(noises[::NOISE_EVERY])
    return tuple(noise for noise in noises if noise not in kept), kept


def _distortions(paths: Sequence[Path], noises: Sequence[Path], seed: int) -> dict[Path, Distortion]:
    rng = np.random.default_rng(seed)
    return {
        path: Distortion(
            noises[int(rng.integers(len(noises)))],
            int(rng.integers(10**6)),
            NOISE_SNR_DB,
            float(rng.uniform(-NOISE_TILT, NOISE_TILT)),
        )
        for path in paths
    }
