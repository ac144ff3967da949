from pathlib import Path

import numpy as np
import pytest

from service.audio.features import InputSpec
from service.model.adapter import random_adapter
from service.model.backbone import Backbone
from service.model.spec import TaskType
from service.training.answers import ClassAnswers, answer_trials
from service.training.datasets.load import load_dataset
from service.training.figures import class_figures, trial_figures
from service.training.inference import Inference
from service.training.recordings import Recordings
from service.training.selection import ClassJudge, TrialJudge, split_noises
from service.training.sources import KeywordSource, SpeakerSource
from tests.backbones import adapter_spec
from tests.training.miniature import make_keywords, make_speakers

SPEC = InputSpec(60, windows=2, short="repeat")


def inference(backbone: Backbone, outputs: int, task: TaskType = TaskType.CLASSIFICATION) -> Inference:
    return Inference(backbone, random_adapter(adapter_spec(task=task, outputs=outputs), backbone.spec), SPEC)


def test_class_judge_settles_a_temperature(tiny_wav2vec2: Backbone, tmp_path: Path) -> None:
    dataset = load_dataset(make_keywords(tmp_path), KeywordSource(kind="keywords", selection_speakers=1))
    judge = ClassJudge(dataset.selection, dataset.labels, "softmax", Recordings())
    answering = inference(tiny_wav2vec2, 3)
    settled = judge.settle(answering, calibrate=True)
    assert settled["calibration"]["temperature"] > 0
    assert settled["metrics"]["accuracy"] == pytest.approx(judge.judge(answering)[0], abs=1e-4)
    assert "calibration" not in judge.settle(answering, calibrate=False)


def test_trial_judge_hears_noise_too(tiny_wav2vec2: Backbone, tmp_path: Path) -> None:
    dataset = load_dataset(make_speakers(tmp_path / "data"), SpeakerSource(kind="speakers", selection_speakers=2))
    noises = sorted((tmp_path / "noise").iterdir())
    judge = TrialJudge(dataset.selection, noises, 0, Recordings())
    settled = judge.settle(inference(tiny_wav2vec2, 8, TaskType.VERIFICATION), calibrate=True)
    assert list(settled["metrics"]) == ["clean", "noisy"]
    assert settled["metrics"]["clean"] != settled["metrics"]["noisy"]
    assert -1 <= settled["threshold"] <= 1
    # The threshold is where misses and false accepts meet over both lists.
    gaps = [each["miss_at_threshold"] - each["false_accept_at_threshold"] for each in settled["metrics"].values()]
    assert sum(gaps) == pytest.approx(0.0, abs=0.1)


def test_threshold_keeps_to_a_false_accept_rate(tiny_wav2vec2: Backbone, tmp_path: Path) -> None:
    dataset = load_dataset(make_speakers(tmp_path / "data"), SpeakerSource(kind="speakers", selection_speakers=2))
    answering = inference(tiny_wav2vec2, 8, TaskType.VERIFICATION)
    plain = TrialJudge(dataset.selection, (), 0, Recordings()).settle(answering, calibrate=False)
    strict = TrialJudge(dataset.selection, (), 0, Recordings(), 0.01).settle(answering, calibrate=True)
    assert plain["operating_points"] == {"equal_error": plain["threshold"]}
    points = {"equal_error": plain["threshold"], "false_accept_0.01": strict["threshold"]}
    assert strict["operating_points"] == points
    assert strict["metrics"]["clean"]["false_accept_at_threshold"] <= 0.01
    assert strict["calibration"]["slope"] > 0


def test_noises_of_selection_are_not_trained_on() -> None:
    noises = [Path(str(index)) for index in range(9)]
    training, kept = split_noises(noises)
    assert set(training) | set(kept) == set(noises)
    assert not set(training) & set(kept)
    assert split_noises(noises[:2]) == (tuple(noises[:2]), ())


def test_trials_with_unreadable_clips_are_left_out(tiny_wav2vec2: Backbone, tmp_path: Path) -> None:
    source = SpeakerSource(kind="speakers", selection_speakers=2, condition_noise="../noise")
    root = make_speakers(tmp_path / "data")
    (root / "wav/S006/0.flac").write_bytes(b"broken")
    lists = load_dataset(root, source).report().trials
    recordings = Recordings()
    answers = answer_trials(inference(tiny_wav2vec2, 8, TaskType.VERIFICATION), lists, recordings)
    assert [each.left_out for each in answers] == [5, 5, 5, 5]  # four target trials and one other
    assert len(recordings.faults) == 1
    np.testing.assert_allclose(answers[0].scores, answers[1].scores)
    assert not np.allclose(answers[0].scores, answers[2].scores)
    figures = trial_figures(answers[0], threshold=-1.0)
    assert (figures["trials"], figures["miss_at_threshold"], figures["false_accept_at_threshold"]) == (8, 0.0, 1.0)


def test_class_figures_average_windows_after_the_activation() -> None:
    windows = np.array([[4.0, 0.0], [0.0, 1.0]], np.float32)
    answers = ClassAnswers([windows], np.array([0]), np.array([[True, False]]))
    scores = answers.scores("softmax")
    expected = (np.exp(windows) / np.exp(windows).sum(axis=1, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(scores[0], expected, rtol=1e-6)
    figures = class_figures(answers, ("a", "b"), "softmax", 1.0)
    assert (figures["accuracy"], figures["per_class"]) == (1.0, {"a": 1.0})
