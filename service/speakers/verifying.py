"""Whether a voice is a speaker's: what stands in the way, the references merged, the threshold that judges."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

import numpy as np

from service.errors import InvalidRequest
from service.registry.manifest import Manifest
from service.scoring.calibration import log_likelihood_ratio, open_set_threshold
from service.scoring.score import cosine, decide, enrol
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
DEFAULT: Final = "default"  # the name of the manifest's own threshold
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
    """

    value: float
    name: str | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of comparing a voice with a speaker's."""

    decision: Decision
    score: float | None = None
    log_likelihood_ratio: float | None = None


def standing(speaker: Speaker, voice: Voice, now: datetime) -> Decision | None:
    """What keeps a speaker from being verified, whatever is heard."""
    return _STANDINGS.get(speaker.status(voice, now))


def threshold_of(manifest: Manifest, asked: str | None) -> Threshold:
    """The manifest's own threshold, one that it names, or the number asked. Raises InvalidRequest."""
    judged = "normalisation" not in (manifest.model_extra or {})  # else they are of scores that are not made here yet
    named = dict(manifest.thresholds or {}) if judged else {}
    if manifest.threshold is not None:
        named[DEFAULT] = manifest.threshold
    name = DEFAULT if asked is None else asked
    if name in named:
        return Threshold(named[name], name)
    try:
        value = float(name)
    except ValueError:
        value = math.nan
    if not -1.0 <= value <= 1.0:
        raise InvalidRequest(
            f"a threshold is a cosine within -1 and 1 or one of {', '.join(sorted(named))}, got {name[:80]!a}"
        )
    return Threshold(value, None)


def similarity(references: Sequence[Reference], test: Vector, merge: str = "mean") -> float:
    """Cosine of a voice `[dim]` and a speaker's references.

    Args:
        merge: `mean`, of the references weighted by their seconds of speech, or `best`, of the nearest of them.
    """
    if merge == "best":
        return max(cosine(reference.vector, test) for reference in references)
    return cosine(merged(references), test)


def merged(references: Sequence[Reference]) -> Vector:
    """The references `[dim]` as one: their mean weighted by their seconds of speech, of length 1."""
    return enrol([reference.vector for reference in references], [one.speech_seconds for one in references])


def identification_threshold(manifest: Manifest, searched: int) -> Threshold:
    """What the best of so many has to reach, so that one stranger in a hundred is taken for somebody, at most.

    It is found by the calibration, which says how likely a score is on strangers: a 1:1 threshold never is.

    Raises:
        InvalidRequest: the adapter has no calibration that tells speakers apart.
    """
    calibration = manifest.calibration
    if calibration is None or calibration.intercept is None or not (calibration.slope or 0.0) > 0.0:
        raise InvalidRequest(
            f"{manifest.name} has no calibration, so no threshold of one against many can be found; fit `calibration`"
        )
    slope, intercept = calibration.slope or 0.0, calibration.intercept
    return Threshold(open_set_threshold(slope, intercept, max(1, searched), FPIR), FPIR_NAME)


def compare(
    manifest: Manifest, references: Sequence[Reference], test: Vector, seconds: float, threshold: Threshold
) -> Verdict:
    """The verdict on a voice of an enrolled speaker, where enough is heard of it."""
    if seconds < manifest.speech_needed.verify_seconds:
        return Verdict("not_enough_speech")
    score = similarity(references, test, manifest.merge or "mean")
    return Verdict(decide(score, threshold.value), score, ratio_of(manifest, score))


def ratio_of(manifest: Manifest, score: float) -> float | None:
    """The log-likelihood ratio of a cosine, where the adapter is calibrated."""
    calibration = manifest.calibration
    if calibration is None or calibration.slope is None or calibration.intercept is None:
        return None
    return log_likelihood_ratio(score, calibration.slope, calibration.intercept)


def probability(ratio: float, prior: float) -> float:
    """Of the same speaker, given a log-likelihood ratio and the odds before: Bayes' rule."""
    odds = ratio + math.log(prior) - math.log1p(-prior)
    return float(0.5 + 0.5 * np.tanh(odds / 2))
