"""Judges an adapter on clips held out of training: which epoch was best, which threshold and calibration to ship."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from service.scoring.calibration import (
    LOG_TEMPERATURES,
    binary_log_likelihood,
    fit_logistic,
    fit_temperature,
    negative_log_likelihood,
)
from service.scoring.classes import mean_average_precision
from service.scoring.metrics import accuracy, equal_error_rate
from service.scoring.score import Aggregate
from service.training.answers import ClassAnswers, TrialAnswers, answer_clips, answer_trials
from service.training.datasets.dataset import BadDataset, Clip, Dataset, Distortion, Span, TrialList
from service.training.datasets.trials import selection_trials
from service.training.figures import DECIMALS, FEW, class_figures, trial_figures
from service.training.inference import Inference
from service.training.preparation import Prepared
from service.training.recipe import Recipe
from service.training.recordings import Recordings

FEWEST = 10  # clips that a temperature is fitted on
NOISE_SNR_DB = 15.0  # of the noisy selection trials
NOISE_TILT = 0.6  # largest |a| of their first-order equaliser


class Judge(ABC):
    """Compares epochs and derives what a bundle needs beside its weights, both from an adapter's answers."""

    figure: str  # name of the figure that is compared

    @abstractmethod
    def answer(self, inference: Inference) -> Any:
        """What an adapter answers to the judge's clips or trials."""

    @abstractmethod
    def compare(self, answers: Any) -> tuple[float, float]:
        """Figures of one epoch, larger is better: the main one, and one that breaks ties."""

    @abstractmethod
    def settle(self, answers: Any) -> dict[str, Any]:
        """Manifest fields (`threshold`, `calibration`) and, under `metrics`, the part's figures."""


class ClassJudge(Judge):
    """Accuracy, or mean average precision where clips have several labels; ties broken by cross entropy."""

    def __init__(
        self,
        clips: Sequence[Clip],
        labels: Sequence[str],
        activation: Literal["softmax", "sigmoid"],
        recordings: Recordings,
        *,
        aggregate: Aggregate = "mean",
        reject: float = 0.0,
    ) -> None:
        self.figure = "mAP" if any(clip.also for clip in clips) else "accuracy"
        self._clips, self._labels, self._recordings = clips, labels, recordings
        self._activation, self._aggregate, self._reject = activation, aggregate, reject
        self._loss = negative_log_likelihood if activation == "softmax" else binary_log_likelihood

    def answer(self, inference: Inference) -> ClassAnswers:
        return answer_clips(inference, self._clips, self._recordings, self._aggregate)

    def compare(self, answers: ClassAnswers) -> tuple[float, float]:
        scores, loss = answers.scores(self._activation), self._loss(answers.mean_logits(), self._wanted(answers))
        if answers.multi_label:
            return mean_average_precision(scores, answers.hot), -loss
        return accuracy(scores, answers.targets), -loss

    def settle(self, answers: ClassAnswers) -> dict[str, Any]:
        """No temperature of fewer than FEWEST clips, nor where the likeliest is the end of all that is tried."""
        temperature = fit_temperature(answers.mean_logits(), self._wanted(answers), self._loss)
        is_known = (
            len(answers.targets) >= FEWEST and not np.isclose(temperature, np.exp(LOG_TEMPERATURES[[0, -1]])).any()
        )
        temperature = round(temperature, DECIMALS) if is_known else 1.0
        figures = class_figures(answers, self._labels, self._activation, temperature)
        del figures["per_class"]
        settled: dict[str, Any] = {"metrics": figures}
        if is_known:
            settled["calibration"] = {"temperature": temperature}
        if self._reject and len(sure := answers.sure(temperature)):
            lowest = np.sort(sure)[int(self._reject * len(sure))]  # of those that stay
            settled["reject_below"] = float(np.floor(lowest * 10**DECIMALS) / 10**DECIMALS)
        return settled

    def _wanted(self, answers: ClassAnswers) -> Any:
        return answers.targets if self._activation == "softmax" else answers.hot.astype(np.float64)


class TrialJudge(Judge):
    """Mean equal error rate of the clean trials and, where there are noises, of noisy ones; its threshold too."""

    figure = "1 - EER"

    def __init__(self, clips: Sequence[Clip], noises: Sequence[Span], seed: int, recordings: Recordings) -> None:
        clean = selection_trials(tuple(clips), "clean")
        self._lists = [clean]
        if noises:
            self._lists.append(TrialList("noisy", clean.trials, _distortions(clean.spans, noises, seed)))
        self._recordings = recordings

    def answer(self, inference: Inference) -> list[TrialAnswers]:
        return answer_trials(inference, self._lists, self._recordings)

    def compare(self, answers: list[TrialAnswers]) -> tuple[float, float]:
        rates = [equal_error_rate(each.scores, each.targets)[0] for each in answers]
        gaps = [float(each.scores[each.targets].mean() - each.scores[~each.targets].mean()) for each in answers]
        return 1.0 - float(np.mean(rates)), float(np.mean(gaps))

    def settle(self, answers: list[TrialAnswers]) -> dict[str, Any]:
        scores = np.concatenate([each.scores for each in answers])
        targets = np.concatenate([each.targets for each in answers])
        threshold = round(float(np.clip(equal_error_rate(scores, targets)[1], -1.0, 1.0)), DECIMALS)
        slope, intercept = fit_logistic(scores, targets)
        return {
            "threshold": threshold,
            "calibration": {"slope": round(slope, DECIMALS), "intercept": round(intercept, DECIMALS)},
            "metrics": {each.name: trial_figures(each, threshold) for each in answers},
        }


def make_judge(prepared: Prepared, clips: tuple[Clip, ...], labels: Sequence[str]) -> Judge:
    """The judge by some clips."""
    if prepared.dataset.verification:
        return TrialJudge(clips, prepared.kept_noises, prepared.recipe.seed, prepared.recordings)
    recipe = prepared.recipe
    aggregate, reject = recipe.input.aggregate, recipe.reject
    return ClassJudge(clips, labels, recipe.activation, prepared.recordings, aggregate=aggregate, reject=reject)


def deal(recipe: Recipe, dataset: Dataset) -> list[tuple[tuple[Clip, ...], tuple[Clip, ...]]]:
    """Clips to train on, and clips left out, for each fold of training and selection part.

    Whole groups go to a fold where these are known, else files of each class. No fold where the selection part is large
    enough by itself.
    """
    if not recipe.folds or len(dataset.selection) >= FEW:
        return []
    clips = dataset.train + dataset.selection
    groups = {clip.group for clip in clips}
    has_groups = None not in groups and len(groups) > 1
    seen, place = Counter[int](), dict[object, int]()
    for clip in clips:
        whose, bucket = (clip.group, 0) if has_groups else (clip.span.path, clip.target)
        if whose not in place:
            place[whose] = seen[bucket]
            seen[bucket] += 1
    count = min(recipe.folds, max(2, min(seen.values())))
    folds: list[tuple[list[Clip], list[Clip]]] = [([], []) for _ in range(count)]
    for clip in clips:
        own = place[clip.group if has_groups else clip.span.path] % count
        for number, (learnt, held) in enumerate(folds):
            (held if number == own else learnt).append(clip)
    return [(tuple(learnt), tuple(held)) for learnt, held in folds]


def refit_halves(dataset: Dataset) -> tuple[tuple[Clip, ...], tuple[Clip, ...]]:
    """The selection part's clips to train on in the end, and those that threshold and calibration are settled on.

    Every other group is kept for these, or every other clip of a class, and its only one, where groups are not known
    or fewer than two.

    Raises:
        BadDataset: speakers are verified and fewer than four are in the selection part.
    """
    clips = dataset.selection
    groups = sorted({clip.group for clip in clips if clip.group is not None})
    if dataset.verification and len(groups) < 4:
        raise BadDataset(f"refit needs four speakers or more in the selection part, got {len(groups)}")
    kept, seen, count = set(groups[1::2]), Counter[int](), Counter(clip.target for clip in clips)
    halves: tuple[list[Clip], list[Clip]] = [], []
    for clip in clips:
        if kept and clip.group is not None:
            halves[clip.group in kept].append(clip)
        else:
            seen[clip.target] += 1
            halves[seen[clip.target] % 2 == 0 or count[clip.target] == 1].append(clip)
    return tuple(halves[0]), tuple(halves[1])


def _distortions(spans: Sequence[Span], noises: Sequence[Span], seed: int) -> dict[Span, Distortion]:
    rng = np.random.default_rng(seed)
    return {
        span: Distortion(
            noises[int(rng.integers(len(noises)))],
            int(rng.integers(10**6)),
            NOISE_SNR_DB,
            float(rng.uniform(-NOISE_TILT, NOISE_TILT)),
        )
        for span in spans
    }
