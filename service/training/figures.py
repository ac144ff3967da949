"""Figures of an adapter's answers, JSON-ready and rounded, with confidence intervals where asked for.

`figures` are the few that a bundle carries; `detail` is what is too long for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.model.spec import TaskType
from service.registry.manifest import Manifest
from service.scoring.bootstrap import Bootstrap, class_intervals, trial_intervals
from service.scoring.classes import average_precisions, class_report, confusion_matrix
from service.scoring.metrics import accuracy, equal_error_rate, min_dcf
from service.training.answers import ClassAnswers, TrialAnswers, answer_clips, answer_trials
from service.training.datasets.dataset import Report
from service.training.inference import Inference
from service.training.recordings import Recordings

DECIMALS = 4
FEW = 30  # clips or trials under which a figure is rough


@dataclass(frozen=True, slots=True)
class Measured:
    """Figures of a part.

    Args:
        figures: for verification by trial list.
        detail: per class and, where a clip has one label, the confusion matrix.
        trials: the answers themselves, for a DET curve.
    """

    figures: Mapping[str, Any]
    detail: Mapping[str, Any] = field(default_factory=dict)
    trials: Sequence[TrialAnswers] = ()


def measure(
    inference: Inference, manifest: Manifest, report: Report, recordings: Recordings, bootstrap: int
) -> Measured:
    """Figures on a report part that has been opened. Raises BadDataset where nothing of it can be read."""
    if manifest.task_type is TaskType.VERIFICATION:
        threshold = manifest.threshold or 0.0
        trials = answer_trials(inference, report.trials, recordings)
        return Measured({each.name: trial_figures(each, threshold, bootstrap) for each in trials}, trials=trials)
    temperature = None if manifest.calibration is None else manifest.calibration.temperature
    labels, activation = manifest.labels or (), manifest.activation or "softmax"
    clips = answer_clips(inference, report.clips, recordings, manifest.input.aggregate)
    figures = class_figures(clips, labels, activation, temperature or 1.0, bootstrap)
    others = list(recordings.readable(report.others))
    if manifest.reject_below is not None and others:
        answers = replace(clips, logits=list(inference(map(recordings.samples, others))))
        best = answers.scores(activation, temperature or 1.0).max(axis=1)
        figures["unknown"] = {
            "clips": len(others),
            "rejected": rounded(np.mean(best < manifest.reject_below)),
            "right_kept": rounded(np.mean(clips.sure(temperature or 1.0) >= manifest.reject_below)),
        }
    return Measured(figures, class_detail(clips, labels, activation, temperature or 1.0))


def class_figures(
    answers: ClassAnswers,
    labels: Sequence[str],
    activation: Literal["softmax", "sigmoid"],
    temperature: float,
    bootstrap: int = 0,
) -> dict[str, Any]:
    """Accuracy and mean average precision, over all and by class, and how confident the answers are on average.

    Where clips have several labels there is no accuracy, and `per_class` is the average precision.
    """
    scores = answers.scores(activation, temperature)
    precisions = average_precisions(scores, answers.hot)
    present = answers.hot.sum(axis=0) > 0
    figures: dict[str, Any] = {"clips": len(answers.targets)}
    if answers.multi_label:
        per_class = precisions
    else:
        figures["accuracy"] = rounded(accuracy(scores, answers.targets))
        per_class = class_report(_said(answers, scores), answers.hot).recall
    figures["map"] = rounded(precisions[present].mean())
    figures["mean_confidence"] = rounded(scores.max(axis=1).mean())
    if bootstrap:
        found = class_intervals(scores, answers.hot, answers.targets, bootstrap, groups=answers.groups)
        figures |= _intervals(found, tuple(name for name in ("accuracy", "map") if name in figures))
    figures["per_class"] = {
        label: rounded(value) for label, value, there in zip(labels, per_class, present, strict=True) if there
    }
    return figures


def class_detail(
    answers: ClassAnswers, labels: Sequence[str], activation: Literal["softmax", "sigmoid"], temperature: float
) -> dict[str, Any]:
    """`classes` with precision, recall, F1, average precision; `confusion` where a clip has one label."""
    scores = answers.scores(activation, temperature)
    precisions = average_precisions(scores, answers.hot)
    report = class_report(_said(answers, scores), answers.hot)
    classes = {
        label: {
            "clips": int(report.support[index]),
            "precision": rounded(report.precision[index]),
            "recall": rounded(report.recall[index]),
            "f1": rounded(report.f1[index]),
            "average_precision": rounded(precisions[index]) if report.support[index] else None,
        }
        for index, label in enumerate(labels)
    }
    if answers.multi_label:
        return {"classes": classes}
    counts = confusion_matrix(scores.argmax(axis=1), answers.targets, len(labels))
    return {"classes": classes, "confusion": {"labels": list(labels), "counts": counts.tolist()}}


def trial_figures(answers: TrialAnswers, threshold: float, bootstrap: int = 0) -> dict[str, Any]:
    """EER, minDCF (p 0.01, C_miss 1 and 10, normalised), and what the bundle's threshold does here."""
    scores, targets = answers.scores, answers.targets
    figures: dict[str, Any] = {
        "trials": len(scores),
        "left_out": answers.left_out,
        "eer": rounded(equal_error_rate(scores, targets)[0]),
        "min_dcf_1": rounded(min_dcf(scores, targets)),
        "min_dcf_10": rounded(min_dcf(scores, targets, c_miss=10.0)),
        "miss_at_threshold": rounded(np.mean(scores[targets] < threshold)),
        "false_accept_at_threshold": rounded(np.mean(scores[~targets] >= threshold)),
    }
    if bootstrap:
        found = trial_intervals(scores, targets, answers.speakers, bootstrap)
        figures |= _intervals(found, ("eer", "min_dcf_1", "min_dcf_10"))
    return figures


def _said(answers: ClassAnswers, scores: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which classes are said `[N, C]`: the best one, or all of one half or more where a clip has several labels."""
    if answers.multi_label:
        return np.asarray(scores >= 0.5)
    said: NDArray[np.bool_] = np.eye(scores.shape[1], dtype=np.bool_)[scores.argmax(axis=1)]
    return said


def _intervals(found: Bootstrap, names: tuple[str, ...]) -> dict[str, Any]:
    intervals = {name: [rounded(end) for end in found.intervals[name]] for name in names if name in found.intervals}
    how = {"level": found.level, "replicates": found.replicates, "resampled": found.resampled}
    return {"intervals": intervals, "bootstrap": how}


def rounded(value: float | np.floating[Any]) -> float:
    """As figures are told."""
    return round(float(value), DECIMALS)
