"""An adapter's answers to clips or trials, which selection, calibration and the report measure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.scoring.score import Aggregate, activate, clip_scores, cosine, voiceprint
from service.training.augment import fixed_noise
from service.training.datasets.dataset import BadDataset, Clip, Distortion, Span, TrialList, multi_hot
from service.training.datasets.trials import speakers_of
from service.training.inference import Inference
from service.training.recordings import Recordings, Samples


@dataclass(frozen=True, slots=True)
class ClassAnswers:
    """Raw outputs for readable clips."""

    logits: list[NDArray[np.float32]]  # one [W, C] for each clip
    targets: NDArray[np.int64]  # [N], the first label of each
    hot: NDArray[np.bool_]  # [N, C], every label
    aggregate: Aggregate = "mean"  # what makes a clip's scores of its windows
    groups: NDArray[np.int64] | None = None  # [N], numbers of what the clips are from; none where that is not told

    def scores(self, activation: Literal["softmax", "sigmoid"], temperature: float = 1.0) -> NDArray[np.float32]:
        """Class scores of the clips `[N, C]`, as the server answers them."""
        activated = (activate(windows, activation, temperature) for windows in self.logits)
        return np.stack([clip_scores(windows, self.aggregate) for windows in activated])

    def sure(self, temperature: float = 1.0) -> NDArray[np.float32]:
        """Best softmax scores of the clips that are answered rightly `[R]`."""
        scores = self.scores("softmax", temperature)
        best: NDArray[np.float32] = scores.max(axis=1)[scores.argmax(axis=1) == self.targets]
        return best

    @property
    def multi_label(self) -> bool:
        """Whether some clip has several labels, so that no single answer to it is right."""
        return bool((self.hot.sum(axis=1) > 1).any())

    def mean_logits(self) -> NDArray[np.float32]:
        """Logits averaged over windows `[N, C]`, for fitting a temperature."""
        return np.stack([windows.mean(axis=0) for windows in self.logits])


def answer_clips(
    inference: Inference, clips: Sequence[Clip], recordings: Recordings, aggregate: Aggregate = "mean"
) -> ClassAnswers:
    """Raw outputs for every readable clip. Raises BadDataset where none is."""
    readable = set(recordings.readable(clip.span for clip in clips))
    kept = [clip for clip in clips if clip.span in readable]
    if not kept:
        raise BadDataset(f"none of {len(clips)} clips could be read")
    logits = list(inference(recordings.samples(clip.span) for clip in kept))
    targets = np.array([clip.target for clip in kept])
    names = [clip.group for clip in kept]
    groups = None if None in names else np.unique(np.array(names), return_inverse=True)[1]
    return ClassAnswers(logits, targets, multi_hot(kept, logits[0].shape[1]), aggregate, groups)


def answers_of(clips: Sequence[Clip], logits: NDArray[np.float32]) -> ClassAnswers:
    """Answers that are known already: logits `[N, C]` of clips."""
    targets = np.array([clip.target for clip in clips])
    return ClassAnswers(list(logits[:, None]), targets, multi_hot(clips, logits.shape[1]))


@dataclass(frozen=True, slots=True)
class TrialAnswers:
    """Scores of the trials whose clips are readable."""

    name: str
    scores: NDArray[np.float64]  # [N]
    targets: NDArray[np.bool_]  # [N], one speaker?
    speakers: NDArray[np.int64]  # [N, 2], numbers of both sides
    left_out: int  # trials


def answer_trials(inference: Inference, lists: Sequence[TrialList], recordings: Recordings) -> list[TrialAnswers]:
    """Cosine of every trial's two voiceprints, each clip under each condition being heard once.

    Raises:
        BadDataset: no trial of a list is left, or a noise of the fixed condition cannot be read.
    """
    noises = {distortion.noise for trials in lists for distortion in trials.distortions.values()}
    readable = set(recordings.readable([*(span for trials in lists for span in trials.spans), *noises]))
    lost = noises - readable
    if lost:
        raise BadDataset(f"noise file {min(lost).path} of the fixed condition cannot be read ({len(lost)} such files)")
    heard = dict.fromkeys(
        (span, trials.distortions.get(span)) for trials in lists for span in trials.spans if span in readable
    )
    answers = inference(_distorted(span, distortion, recordings) for span, distortion in heard)
    prints = {key: voiceprint(windows) for key, windows in zip(heard, answers, strict=True)}
    return [_scored(trials, prints) for trials in lists]


def _scored(trials: TrialList, prints: Mapping[tuple[Span, Distortion | None], NDArray[np.float32]]) -> TrialAnswers:
    def print_of(span: Span) -> NDArray[np.float32] | None:
        return prints.get((span, trials.distortions.get(span)))

    scores, kept = [], []
    for trial in trials.trials:
        left, right = print_of(trial.left), print_of(trial.right)
        if left is not None and right is not None:
            scores.append(cosine(left, right))
            kept.append(trial)
    if not scores:
        raise BadDataset(f"none of the {len(trials.trials)} trials of {trials.name!r} has both clips readable")
    targets = np.array([trial.same for trial in kept])
    left_out = len(trials.trials) - len(scores)
    return TrialAnswers(trials.name, np.array(scores), targets, speakers_of(kept), left_out)


def _distorted(span: Span, distortion: Distortion | None, recordings: Recordings) -> Samples:
    samples = recordings.samples(span)
    if distortion is None:
        return samples
    noise = recordings.samples(distortion.noise)
    return fixed_noise(samples, noise, distortion.offset, distortion.snr_db, distortion.eq_a)
