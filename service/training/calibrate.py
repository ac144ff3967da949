"""`ipet calibrate`: a cohort, thresholds and log-likelihood ratios for a speaker bundle, fitted on a user's own trials.

What is told of the calibrated bundle is measured on speakers that it was not fitted on: they are dealt into folds, and
a trial is judged by what was fitted without any speaker of its two folds. What is written is fitted on all trials.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from service.errors import InvalidRequest, ServiceError
from service.model.spec import TaskType
from service.registry.bundle import COHORT, MAX_COHORT
from service.registry.manifest import Manifest
from service.scoring.bootstrap import FEWEST, REPLICATES, trial_intervals
from service.scoring.calibration import cllr, fit_logistic, min_cllr
from service.scoring.cohort import adaptive_s_norm
from service.scoring.metrics import equal_error_rate, min_dcf, threshold_at_false_accepts
from service.scoring.score import enrol, voiceprint
from service.training.answers import TrialAnswers
from service.training.datasets.dataset import Span, read_lines
from service.training.datasets.trials import place, read_list, speakers_of
from service.training.figures import rounded
from service.training.inference import Inference, Opened
from service.training.pictures import can_draw, draw_det
from service.training.recordings import Recordings

PICTURE = "det.png"
RATES: Final = {"far_1e-2": 1e-2, "far_1e-3": 1e-3}
FOLDS: Final = 5
FEWEST_VOICES: Final = 20  # in a cohort
LEFT_OUT: Final = 3  # voices that are too few, as a trial's own two do not count

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Fit:
    """Thresholds and calibration of scores."""

    thresholds: dict[str, float]
    slope: float
    intercept: float

    @property
    def line(self) -> dict[str, float]:
        """As a manifest has it."""
        return {"slope": rounded(self.slope), "intercept": rounded(self.intercept)}

    @classmethod
    def of(cls, scores: Floats, targets: Flags) -> "Fit":
        """Fitted on trials `[N]`."""
        thresholds = {name: threshold_at_false_accepts(scores, targets, rate) for name, rate in RATES.items()}
        return cls({"eer": equal_error_rate(scores, targets)[1], **thresholds}, *fit_logistic(scores, targets))


@dataclass(frozen=True, slots=True)
class Trials:
    """Trials of which both sides were heard."""

    left: NDArray[np.float32]  # [N, dim], of length 1, as all voiceprints
    right: NDArray[np.float32]  # [N, dim]
    targets: Flags  # [N], one speaker?
    speakers: NDArray[np.int64]  # [N, 2], numbers of both sides

    @property
    def cosines(self) -> Floats:
        products: Floats = self.left.astype(np.float64) * self.right
        return np.asarray(products.sum(axis=1))

    def normalised(self, voices: NDArray[np.float32], top: int, *, are_theirs: bool) -> Floats:
        """Scores by a cohort `[C, dim]`; where `are_theirs`, voice i is speaker i's, and not of their own trials."""
        left, right = ((side @ voices.T).astype(np.float64) for side in (self.left, self.right))
        for side in (left, right) if are_theirs else ():
            np.put_along_axis(side, self.speakers, -np.inf, axis=1)
        return adaptive_s_norm(self.cosines, left, right, top)


@dataclass(frozen=True, slots=True)
class Judged:
    """Trials as a bundle judges them."""

    scores: Floats  # `[N]`, by which they are ranked
    ratios: Floats | None  # `[N]`, log-likelihood ratios; None of a bundle without calibration
    accepted: Mapping[str, Flags]  # `[N]`, by the name of the threshold

    def figures(self, trials: Trials, bootstrap: int) -> dict[str, Any]:
        """Figures with intervals; a rate of nothing in n trials may be 1 - 0.05^(1/n) for all they say."""
        targets, shares = trials.targets, dict[str, tuple[Flags, Flags]]()
        for name, accepted in self.accepted.items():
            shares |= {f"false_accept {name}": (~targets, accepted), f"false_reject {name}": (targets, ~accepted)}
        found = trial_intervals(self.scores, targets, trials.speakers, bootstrap, shares=shares)
        rates: dict[str, dict[str, list[float]]] = {}
        for name, (among, holds) in shares.items():
            kind, threshold = name.split()
            low, high = found.intervals[name]
            high = max(high, 1.0 - 0.05 ** (1.0 / int(among.sum())))
            rates.setdefault(threshold, {})[kind] = [rounded(one) for one in (holds[among].mean(), low, high)]
        return {
            "eer": [rounded(one) for one in (equal_error_rate(self.scores, targets)[0], *found.intervals["eer"])],
            "min_dcf_1": rounded(min_dcf(self.scores, targets)),
            "cllr": None if self.ratios is None else rounded(cllr(self.ratios, targets)),
            "min_cllr": rounded(min_cllr(self.scores, targets)),
            "thresholds": rates,
            "resampled": found.resampled,
        }


def calibrate(
    opened: Opened,
    lists: tuple[Path, Path | None],
    data: Path,
    out: Path,
    *,
    top: int = 300,
    normalise: bool | None = None,
    bootstrap: int = REPLICATES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write a bundle calibrated on a user's trials to `out`, with a report and a DET plot beside it.

    Args:
        lists: of trials, lines of `label path1 path2`, 1 where one speaker is heard twice; and of a cohort, lines of
            `speaker path`: without it the speakers of the trials are one, each left out of their own trials.
        data: where the paths are seen from.
        top: how many of the cohort's nearest voices normalise a score.
        normalise: whether scores are; without it where that lowers minCllr, by a cohort of `FEWEST_VOICES` or more.

    Returns:
        The report, JSON-ready: figures `before` and `after`, and on how many speakers they rest.

    Raises:
        InvalidRequest: the bundle is not for speakers, or a clip cannot be heard.
        BadDataset: the lists cannot be used.
    """
    manifest = opened.manifest
    if manifest.task_type is not TaskType.VERIFICATION:
        told = f"{manifest.name} is for {manifest.task_type.value}"
        raise InvalidRequest(f"{told}; {TaskType.VERIFICATION.value} is calibrated")
    trials, voices = _hear(opened.inference, lists, data, progress)
    cosines = trials.cosines
    scores = trials.normalised(voices, top, are_theirs=lists[1] is None) if len(voices) > LEFT_OUT else cosines
    helps = len(voices) >= FEWEST_VOICES and min_cllr(scores, trials.targets) < min_cllr(cosines, trials.targets)
    has_cohort = len(voices) > LEFT_OUT and (helps if normalise is None else normalise)
    if not has_cohort:
        scores = cosines
    fit, plain = Fit.of(scores, trials.targets), Fit.of(cosines, trials.targets)
    names = [name for name in fit.thresholds if RATES.get(name, 1.0) * int((~trials.targets).sum()) >= 1]
    after, is_held_out = _judge_held_out(trials, scores, names)
    report = {
        "name": manifest.name,
        "digest": opened.files.digest,
        "trials": len(scores),
        "target_trials": int(trials.targets.sum()),
        "speakers": int(trials.speakers.max()) + 1,
        "cohort": len(voices) if has_cohort else None,
        "held_out": is_held_out,
        "before": _judge_before(manifest, cosines).figures(trials, bootstrap),
        "after": after.figures(trials, bootstrap),
    }
    changes: dict[str, Any] = {
        "threshold": rounded(np.clip(plain.thresholds["eer"], -1, 1)),
        "calibration": plain.line,
        "thresholds": {name: rounded(fit.thresholds[name]) for name in names},
        "normalisation": {"type": "as-norm", "top": top, "calibration": fit.line} if has_cohort else None,
    }
    opened.tensors.pop(COHORT, None)
    if has_cohort:
        opened.tensors[COHORT] = torch.from_numpy(voices)
    opened.calibrated(out, changes, "calibration", report)
    if can_draw():
        ranked = (("before", cosines), ("after", scores))
        draw_det(out / PICTURE, [TrialAnswers(n, one, trials.targets, trials.speakers, 0) for n, one in ranked])
    return report


def _hear(
    inference: Inference, lists: tuple[Path, Path | None], data: Path, progress: Callable[[int, int], None]
) -> tuple[Trials, NDArray[np.float32]]:
    """The trials, and the cohort's voices `[C, dim]`: the trials' own speakers, unless a list names others."""
    listed = read_list(data, lists[0].stem, lists[0])
    lines = [] if lists[1] is None else read_lines(lists[1], 2, "speaker path")
    others = [(speaker, place(data, path)) for speaker, path in lines]
    prints = _voiceprints(inference, list(dict.fromkeys([*listed.spans, *(span for _, span in others)])), progress)
    speakers = speakers_of(listed.trials)
    clips: dict[Any, dict[Span, NDArray[np.float32]]] = defaultdict(dict)
    for trial, (left, right) in zip(listed.trials, speakers.tolist(), strict=True):
        clips[left][trial.left], clips[right][trial.right] = prints[trial.left], prints[trial.right]
    if lists[1] is not None:
        clips.clear()
    for speaker, span in others:
        clips[speaker][span] = prints[span]
    if len(clips) > MAX_COHORT:
        raise InvalidRequest(f"a cohort has at most {MAX_COHORT:,} speakers, got {len(clips):,}: list fewer of them")
    voices = np.stack([enrol(list(clips[one].values())) for one in sorted(clips)])
    left, right = (np.stack([prints[getattr(trial, side)] for trial in listed.trials]) for side in ("left", "right"))
    return Trials(left, right, np.array([trial.same for trial in listed.trials]), speakers), voices


def _voiceprints(
    inference: Inference, clips: Sequence[Span], progress: Callable[[int, int], None]
) -> dict[Span, NDArray[np.float32]]:
    """Of every clip. Raises InvalidRequest, naming the one that cannot be heard."""

    recordings = Recordings(memory_seconds=0.0)

    def samples() -> Iterator[NDArray[np.float32]]:
        for done, clip in enumerate(clips):
            progress(done, len(clips))
            try:
                yield recordings.samples(clip)
            except (ServiceError, OSError) as error:
                raise InvalidRequest(f"{clip.path}: {getattr(error, 'detail', error)}") from error

    return dict(zip(clips, map(voiceprint, inference(samples())), strict=True))


def _judge_before(manifest: Manifest, cosines: Floats) -> Judged:
    """By the bundle's own threshold, calibration, and names of thresholds where they are of cosines."""
    named = {"default": manifest.threshold or 0.0}
    if manifest.normalisation is None:
        named |= manifest.thresholds or {}
    line, ratios = manifest.calibration, None
    if line is not None and line.slope is not None and line.intercept is not None:
        ratios = line.slope * cosines + line.intercept
    return Judged(cosines, ratios, {name: cosines >= value for name, value in named.items()})


def _judge_held_out(trials: Trials, scores: Floats, names: Sequence[str]) -> tuple[Judged, bool]:
    """By fits on other speakers, and whether there were enough of them for that; else by the fit on all.

    Args:
        names: of the thresholds that are told beside `default`.
    """
    people = int(trials.speakers.max()) + 1
    folds = np.sort(np.random.default_rng(0).permutation(people)[trials.speakers] % FOLDS, axis=1)
    parts: list[tuple[Flags, Flags]] = [(np.ones(len(scores), bool), np.ones(len(scores), bool))]
    if people >= FEWEST:
        pairs = [np.array(pair) for pair in combinations_with_replacement(range(FOLDS), 2)]
        parts = [((folds == pair).all(axis=1), np.asarray(~np.isin(folds, pair).any(axis=1))) for pair in pairs]
    ratios = np.zeros(len(scores))
    accepted = {name: np.zeros(len(scores), bool) for name in ("default", *names)}
    for judged, fitted in parts:
        fit = Fit.of(scores[fitted], trials.targets[fitted])
        ratios[judged] = fit.slope * scores[judged] + fit.intercept
        plain = Fit.of(trials.cosines[fitted], trials.targets[fitted])
        accepted["default"][judged] = trials.cosines[judged] >= plain.thresholds["eer"]
        for name in names:
            accepted[name][judged] = scores[judged] >= fit.thresholds[name]
    return Judged(scores, ratios, accepted), people >= FEWEST
