"""From windows to answers: averages, voiceprints, scores, decisions. Knows no models or files (numpy only).

The rules are section 3 of the contract: class scores are averaged over windows after the activation, speaker
embeddings are L2-normalised for each window, averaged and L2-normalised again.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float32]
Decision = Literal["accept", "reject", "not_enough_speech"]
Aggregate = Literal["mean", "max"]

MIN_NORM = 1e-12  # below this an embedding has no direction: its voiceprint is all zeros and scores 0

TOUCHING_SECONDS = 1e-6  # between windows that follow one another


def activate(logits: ArrayLike, activation: Literal["softmax", "sigmoid"], temperature: float = 1.0) -> Floats:
    """Class scores `[..., C]` of logits `[..., C]`, divided by the temperature, by softmax or by sigmoid for each."""
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    values = np.asarray(logits, dtype=np.float64) / temperature
    if activation == "sigmoid":
        scores = 0.5 + 0.5 * np.tanh(values / 2)
    else:
        powers = np.exp(values - np.maximum.reduce(values, axis=-1, keepdims=True))
        scores = powers / np.add.reduce(powers, axis=-1, keepdims=True)
    return scores.astype(np.float32)


def clip_scores(windows: ArrayLike, aggregate: Aggregate = "mean") -> Floats:
    """Class scores `[W, C]` of a clip's windows, after the activation -> the clip's scores `[C]`."""
    values = _windows(windows)
    if len(values) == 1:  # as most clips have
        return np.asarray(values[0], np.float32)
    scores: Floats = (values.max(axis=0) if aggregate == "max" else values.mean(axis=0)).astype(np.float32)
    return scores


def l2_normalise(vectors: ArrayLike) -> Floats:
    """Scale vectors `[..., dim]` to length 1; a vector without length stays all zeros."""
    values = np.asarray(vectors, dtype=np.float64)
    norms = np.linalg.norm(values, axis=-1, keepdims=True)
    scaled: Floats = np.where(norms < MIN_NORM, 0.0, values / np.maximum(norms, MIN_NORM)).astype(np.float32)
    return scaled


def voiceprint(windows: ArrayLike) -> Floats:
    """Embeddings `[W, dim]` of a clip's windows -> the clip's embedding `[dim]`, of length 1."""
    return l2_normalise(l2_normalise(_windows(windows)).mean(axis=0))


def enrol(embeddings: Sequence[ArrayLike], weights: Sequence[float] | None = None) -> Floats:
    """Embeddings `[dim]` of one speaker's clips -> the enrolment `[dim]`: their re-normalised mean.

    Args:
        weights: how much each counts, as in seconds of speech; all the same without them.
    """
    if len(embeddings) == 0:
        raise ValueError("an enrolment needs at least one embedding, got none")
    rows = [np.asarray(embedding, dtype=np.float64) for embedding in embeddings]
    shapes = {row.shape for row in rows}
    if len(shapes) != 1 or rows[0].ndim != 1:
        raise ValueError(f"embeddings of an enrolment must be vectors of one length, got shapes {sorted(shapes)}")
    normalised = l2_normalise(np.stack(rows)).astype(np.float64)
    if weights is not None and (len(weights) != len(rows) or not min(weights) >= 0 or not sum(weights) > 0):
        raise ValueError(f"{len(rows)} embeddings need as many weights, none below 0 and not all 0, got {weights}")
    return l2_normalise(np.average(normalised, axis=0, weights=weights))


def cosine(a: ArrayLike, b: ArrayLike) -> float:
    """Cosine of two embeddings `[dim]`, within [-1, 1]; 0 when one of them has no length."""
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.ndim != 1 or left.shape != right.shape:
        raise ValueError(f"embeddings must be vectors of one length, got shapes {left.shape} and {right.shape}")
    norms = np.linalg.norm(left), np.linalg.norm(right)
    if min(norms) < MIN_NORM:
        return 0.0
    return float(np.clip(np.dot(left / norms[0], right / norms[1]), -1.0, 1.0))


def decide(score: float, threshold: float) -> Decision:
    """`accept` when `score >= threshold`, else `reject`."""
    return "accept" if score >= threshold else "reject"


def merge(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Spans of time, seconds, as few as cover the same; those that touch become one."""
    merged: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1] + TOUCHING_SECONDS:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def rank(labels: Sequence[str], scores: ArrayLike, top_k: int = 0) -> list[tuple[str, float]]:
    """Labels with their scores `[C]`, best first; `top_k` 0 means all. Ties keep the order of `labels`."""
    values = np.asarray(scores)
    if values.shape != (len(labels),):
        raise ValueError(f"{len(labels)} labels need scores of shape ({len(labels)},), got {values.shape}")
    if top_k < 0:
        raise ValueError(f"top_k must be 0 (all) or more, got {top_k}")
    order = (-values).argsort(kind="stable")[: top_k or None]
    return [(labels[index], score) for index, score in zip(order.tolist(), values[order].tolist(), strict=True)]


def _windows(windows: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(windows, dtype=np.float64)
    if values.ndim != 2 or len(values) == 0:
        raise ValueError(f"windows must be [W, C] with at least one window, got shape {values.shape}")
    return values
