"""Figures for each class: average precision, precision, recall, and what is taken for what. numpy only."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def average_precision(scores: ArrayLike, hits: ArrayLike, weights: ArrayLike | None = None) -> Floats:
    """Mean over the hits of the precision at each one's score; clips of one score are taken together.

    Args:
        scores: `[N]`, of one class.
        hits: `[N]`, true where the clip has the class.
        weights: `[..., N]`, how often each clip counts.

    Returns:
        `[...]`; NaN where no clip has the class.
    """
    values, wanted = np.asarray(scores, dtype=np.float64), np.asarray(hits, dtype=bool)
    if values.ndim != 1 or values.shape != wanted.shape:
        raise ValueError(f"scores and hits must be [N] both, got {values.shape} and {wanted.shape}")
    order = np.argsort(-values, kind="stable")
    values, wanted = values[order], wanted[order]
    # Precision is read behind the last clip that shares a hit's score.
    last = np.searchsorted(-values, -values[wanted], side="right") - 1
    counts = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)[..., order]
    hit_counts = counts[..., wanted]
    found = np.concatenate((np.zeros((*counts.shape[:-1], 1)), np.cumsum(hit_counts, axis=-1)), axis=-1)
    found = found[..., np.cumsum(wanted)[last]]  # hits up to there
    seen = np.cumsum(counts, axis=-1)[..., last]
    with np.errstate(invalid="ignore"):
        precisions = found / np.maximum(seen, 1e-300)  # 0 / 0 only for hits that count 0 times
        mean: Floats = (hit_counts * precisions).sum(axis=-1) / hit_counts.sum(axis=-1)
    return mean


def average_precisions(scores: ArrayLike, hot: ArrayLike, weights: ArrayLike | None = None) -> Floats:
    """Average precision of every class: scores `[N, C]`, labels `[N, C]`, weights `[..., N]` -> `[..., C]`."""
    values, wanted = np.asarray(scores), np.asarray(hot)
    if values.ndim != 2 or values.shape != wanted.shape:
        raise ValueError(f"scores and labels must be [N, C] both, got {values.shape} and {wanted.shape}")
    columns = [average_precision(values[:, c], wanted[:, c], weights) for c in range(values.shape[1])]
    return np.stack(columns, axis=-1)


def mean_average_precision(scores: ArrayLike, hot: ArrayLike) -> float:
    """Mean average precision over the classes that some clip has (mAP, macro)."""
    found = average_precisions(scores, hot)
    known = found[~np.isnan(found)]
    if len(known) == 0:
        raise ValueError("a mean average precision needs clips with labels")
    return float(known.mean())


def confusion_matrix(answers: ArrayLike, targets: ArrayLike, classes: int) -> NDArray[np.int64]:
    """How many clips of class i (row) are answered with class j (column): classes `[N]` both -> `[C, C]`."""
    told, wanted = np.asarray(answers, dtype=np.int64), np.asarray(targets, dtype=np.int64)
    if told.ndim != 1 or told.shape != wanted.shape:
        raise ValueError(f"answers and targets must be [N] both, got {told.shape} and {wanted.shape}")
    if len(told) and not (min(told.min(), wanted.min()) >= 0 and max(told.max(), wanted.max()) < classes):
        raise ValueError(f"answers and targets must be classes from 0 to {classes - 1}")
    return np.bincount(wanted * classes + told, minlength=classes * classes).reshape(classes, classes)


@dataclass(frozen=True, slots=True)
class ClassReport:
    """What is right for each class; 0 where nothing was answered or nothing was there."""

    precision: Floats  # [C]
    recall: Floats  # [C]
    f1: Floats  # [C]
    support: NDArray[np.int64]  # [C], clips that have the class


def class_report(answers: ArrayLike, hot: ArrayLike) -> ClassReport:
    """Precision, recall and F1 of answers `[N, C]` (true where a class is said) against labels `[N, C]`."""
    said, wanted = np.asarray(answers, dtype=bool), np.asarray(hot, dtype=bool)
    if said.ndim != 2 or said.shape != wanted.shape:
        raise ValueError(f"answers and labels must be [N, C] both, got {said.shape} and {wanted.shape}")
    right, told, support = (said & wanted).sum(axis=0), said.sum(axis=0), wanted.sum(axis=0)
    return ClassReport(
        precision=right / np.maximum(told, 1),
        recall=right / np.maximum(support, 1),
        f1=2 * right / np.maximum(told + support, 1),
        support=support,
    )
