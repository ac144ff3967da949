"""Whether a voice is a speaker's: what stands in the way, the references merged, the threshold that judges."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidRequest
from service.registry.manifest import Manifest
from service.registry.sections import Calibration
from service.scoring.calibration import log_likelihood_ratio, open_set_threshold
from service.scoring.cohort import Cohort
from service.scoring.score import cosine, decide, enrol, l2_normalise, voiceprint
from service.speakers.speaker import Reference, Speaker, Status, Voice
from service.speakers.vault import Vector

Decision = Literal[
    "accept",
    "reject",
    "not_enough_speech",
    "speaker_opted_out",
    "speaker_not_enrolled",
    "voiceprint_expired",
    "voiceprint_stale",
]
FPIR: Final = 1e-2  # share of strangers who are taken for somebody, at most
FPIR_NAME: Final = "fpir_1e-2"
UNREACHABLE: Final = "threshold_unreachable"  # the warning where no cosine is as high
POWER_STEPS: Final = 10  # of the power iteration: a rough direction will do
TWO_VOICES: Final = -math.log(10)  # log-likelihood ratio of one voice
DEFAULT: Final = "default"  # the name of the manifest's own threshold
_NUMBER: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_STANDINGS: Final[dict[Status, Decision]] = {
    Status.OPTED_OUT: "speaker_opted_out",
    Status.PENDING: "speaker_not_enrolled",
    Status.EXPIRED: "voiceprint_expired",
    Status.STALE: "voiceprint_stale",
}


@dataclass(frozen=True, slots=True)
class Threshold:
    """What judges a score.

    Args:
        name: as the manifest calls it; None for a number of the caller's.
        is_normalised: whether it judges normalised scores, not cosines.
    """

    value: float
    name: str | None
    is_normalised: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of comparing a voice with a speaker's."""

    decision: Decision
    score: float | None = None
    normalised_score: float | None = None
    log_likelihood_ratio: float | None = None
    reason: str | None = None


def standing(speaker: Speaker, voice: Voice, now: datetime) -> Decision | None:
    """What keeps a speaker from being verified, whatever is heard."""
    return _STANDINGS.get(speaker.status(voice, now))


def threshold_of(manifest: Manifest, asked: str | None) -> Threshold:
    """The manifest's own threshold, one that it names, or the number asked. Raises InvalidRequest."""
    named = dict(manifest.thresholds or {})
    if manifest.threshold is not None:
        named[DEFAULT] = manifest.threshold
    name = DEFAULT if asked is None else asked
    if name in named:
        return Threshold(named[name], name, manifest.normalisation is not None and name != DEFAULT)
    value = float(name) if _NUMBER.fullmatch(name) else math.nan
    if not -1.0 <= value <= 1.0:
        raise InvalidRequest(
            f"a threshold is a cosine within -1 and 1 or one of {', '.join(sorted(named))}, got {name[:80]!a}"
        )
    return Threshold(value, None)


def reference_for(references: Sequence[Reference], test: Vector, merge: str = "mean") -> Vector:
    """What of a speaker's references a voice `[dim]` is compared with, `[dim]`.

    Args:
        merge: `mean`, of the references weighted by their seconds of speech, or `best`, the nearest of them.
    """
    if merge == "best":
        return max((reference.vector for reference in references), key=lambda vector: cosine(vector, test))
    return merged(references)


def merged(references: Sequence[Reference]) -> Vector:
    """The references `[dim]` as one: their mean weighted by their seconds of speech, of length 1."""
    return enrol([reference.vector for reference in references], [one.speech_seconds for one in references])


def identification_threshold(manifest: Manifest, searched: int, cohort: Cohort | None) -> tuple[Threshold, bool]:
    """What the best of so many has to reach, so that one stranger in a hundred is taken for somebody, at most.

    It is found by the cohort, or by the calibration, which says how likely a score is on strangers: a 1:1 threshold
    never is.

    Returns:
        The threshold, and whether it is extrapolated from what was measured.

    Raises:
        InvalidRequest: the adapter has neither a cohort large enough nor a calibration that tells speakers apart.
    """
    if cohort is not None and cohort.open_set is not None:
        value, is_extrapolated = cohort.open_set.threshold(max(1, searched), FPIR)
        return Threshold(value, FPIR_NAME), is_extrapolated
    calibration = manifest.calibration
    if calibration is None or calibration.intercept is None or not (calibration.slope or 0.0) > 0.0:
        raise InvalidRequest(
            f"{manifest.name} has no calibration, so no threshold of one against many can be found; fit `calibration`"
        )
    slope, intercept = calibration.slope or 0.0, calibration.intercept
    return Threshold(open_set_threshold(slope, intercept, max(1, searched), FPIR), FPIR_NAME), True


def compare(
    manifest: Manifest,
    cohort: Cohort | None,
    references: Sequence[Reference],
    test: Vector,
    seconds: float,
    threshold: Threshold,
    rejected: str | None = None,
) -> Verdict:
    """The verdict on a voice of an enrolled speaker, where enough is heard of it.

    Args:
        rejected: the check that rejects the voice, whatever it scores.
    """
    if seconds < manifest.speech_needed.verify_seconds:
        return Verdict("not_enough_speech")
    reference = reference_for(references, test, manifest.merge or "mean")
    score = cosine(reference, test)
    normalised = None if cohort is None else cohort.normalise(score, reference, test)
    judged = normalised if threshold.is_normalised and normalised is not None else score
    ratio = ratio_of(calibration_for(manifest, threshold), judged)
    decision: Decision = "reject" if rejected else decide(judged, threshold.value)
    return Verdict(decision, score, normalised, ratio, rejected)


def calibration_for(manifest: Manifest, threshold: Threshold) -> Calibration | None:
    """The calibration of the scores that a threshold judges."""
    if threshold.is_normalised and manifest.normalisation is not None:
        return manifest.normalisation.calibration
    return manifest.calibration


def ratio_of(calibration: Calibration | None, score: float) -> float | None:
    """The log-likelihood ratio of a score, where it is calibrated."""
    if calibration is None or calibration.slope is None or calibration.intercept is None:
        return None
    return log_likelihood_ratio(score, calibration.slope, calibration.intercept)


def other_voices(
    windows: Sequence[NDArray[np.float32]], spoken: Sequence[NDArray[np.bool_]], calibration: Calibration | None
) -> list[bool]:
    """Which clips have windows of another voice than most windows have, if there are two voices.

    The windows of all clips in which somebody speaks are split in two along the direction in which they differ most;
    there are two voices where the calibration finds both halves ten times likelier of two people than of one.

    Args:
        windows: of each clip, embeddings `[W, dim]`.
        spoken: in which of them somebody speaks, `[W]`.
    """
    voices = [clip[heard] for clip, heard in zip(windows, spoken, strict=True)]
    rows = l2_normalise(np.concatenate(voices)).astype(np.float64)
    if not len(rows):
        return [False] * len(windows)
    centred = rows - rows.mean(axis=0)
    direction = centred[np.argmax(np.linalg.norm(centred, axis=1))]
    for _ in range(POWER_STEPS):
        direction = l2_normalise((centred @ direction) @ centred).astype(np.float64)
    is_other = centred @ direction > 0
    if is_other.sum() > len(rows) / 2:
        is_other = ~is_other
    if is_other.any():
        ratio = ratio_of(calibration, cosine(voiceprint(rows[is_other]), voiceprint(rows[~is_other])))
        if ratio is not None and ratio < TWO_VOICES:
            parts = np.split(is_other, np.cumsum([len(clip) for clip in voices])[:-1])
            return [bool(part.any()) for part in parts]
    return [False] * len(windows)


def probability(ratio: float, prior: float) -> float:
    """Of the same speaker, given a log-likelihood ratio and the odds before: Bayes' rule."""
    odds = ratio + math.log(prior) - math.log1p(-prior)
    return float(0.5 + 0.5 * np.tanh(odds / 2))
