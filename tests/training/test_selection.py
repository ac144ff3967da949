from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.audio.features import InputSpec
from service.model.backbone import Backbone
from service.model.spec import TaskType
from service.training.answers import ClassAnswers, answer_trials
from service.training.datasets.dataset import BadDataset, Clip, Dataset, Report, Span, matching
from service.training.datasets.load import load_dataset
from service.training.figures import class_figures, trial_figures
from service.training.inference import Inference
from service.training.preparation import prepare, split_noises
from service.training.recipe import parse_recipe
from service.training.recordings import Recordings
from service.training.selection import ClassJudge, TrialJudge, refit_halves
from service.training.sources import Source
from tests.backbones import adapter_spec, random_adapter
from tests.training.miniature import KEYWORDS, SPEAKERS, make_keywords, make_speakers

SPEC = InputSpec(60, windows=2, short="repeat")


def inference(backbone: Backbone, outputs: int, task: TaskType = TaskType.CLASSIFICATION) -> Inference:
    return Inference(backbone, random_adapter(adapter_spec(task=task, outputs=outputs), backbone.spec), SPEC)


def test_class_judge_judges_and_settles(tiny_wav2vec2: Backbone, tmp_path: Path) -> None:
    dataset = load_dataset(make_keywords(tmp_path), Source.model_validate(KEYWORDS))
    judge = ClassJudge(dataset.selection, dataset.labels, "softmax", Recordings())
    answering = inference(tiny_wav2vec2, 3)
    settled = judge.settle(judge.answer(answering))
    assert "calibration" not in settled  # of nine clips
    assert settled["metrics"]["accuracy"] == pytest.approx(judge.compare(judge.answer(answering))[0], abs=1e-4)


@pytest.mark.parametrize(("clips", "right", "fitted"), [(400, False, True), (9, False, False), (400, True, False)])
def test_a_temperature_is_fitted_where_it_can_be(clips: int, right: bool, fitted: bool) -> None:
    """Answers that are twice too sure; of nine clips, and of answers that are all right, nothing can be said."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (clips, 4)).astype(np.float32)
    drawn = (logits / 2 + rng.gumbel(size=logits.shape)).argmax(axis=1)  # by the softmax of half of them
    targets = logits.argmax(axis=1) if right else drawn
    told = ClassAnswers(list(logits[:, None]), targets, np.eye(4, dtype=bool)[targets])
    judge = ClassJudge((), "abcd", "softmax", Recordings())
    settled = judge.settle(told)
    assert ("calibration" in settled) == fitted
    if fitted:
        assert settled["calibration"]["temperature"] == pytest.approx(2.0, rel=0.15)


def test_few_right_answers_are_told_as_unknown() -> None:
    """Of ten right answers, from 0.55 to 1.0 sure, and two wrong ones that are less sure or surer than all."""
    sure = np.array([0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.999, 0.5001, 0.9999])
    logits = np.log(np.stack([sure, 1 - sure], axis=1)).astype(np.float32)
    targets = np.array([0] * 10 + [1] * 2)
    told = ClassAnswers(list(logits[:, None]), targets, np.eye(2, dtype=bool)[targets])

    def settle(reject: float) -> dict[str, Any]:
        settled = ClassJudge((), "ab", "softmax", Recordings(), reject=reject).settle(told)
        temperature = settled.pop("calibration", {"temperature": 1.0})["temperature"]
        return settled | {"hot": temperature}

    assert "reject_below" not in settle(0.0)
    settled = settle(0.2)  # the third least sure of the ten is the first that stays
    expected = 1 / (1 + (0.35 / 0.65) ** (1 / settled["hot"]))
    assert settled["reject_below"] == pytest.approx(expected, abs=1e-4)


def test_noises_of_the_report_part_are_never_trained_on(tmp_path: Path) -> None:
    root = make_speakers(tmp_path / "data")
    names = sorted(path.name for path in (tmp_path / "noise").iterdir())
    plain = {"name": "voices", "task": "verification", "data": SPEAKERS, "input": {"window_frames": 60}}
    recipe = parse_recipe(plain | {"loss": {"kind": "am_softmax"}, "augment": {"noise_files": ["../noise/*", "no/*"]}})
    dataset = replace(load_dataset(root, recipe.data), reserved=frozenset(names[:1]))
    prepared = prepare(recipe, dataset, Recordings(), report=False, on_clip=lambda: None)
    assert sorted(noise.path.name for noise in prepared.noises + prepared.kept_noises) == names[1:]
    assert len(names) > 1


def test_patterns_may_have_wildcards_in_folders_beside_the_data_and_be_absolute(tmp_path: Path) -> None:
    wanted = [tmp_path / "words" / word / "1.flac" for word in ("bed", "bird", "one")]
    for path in wanted:
        path.parent.mkdir(parents=True)
        path.touch()
    (tmp_path / "data").mkdir()
    found = matching(tmp_path / "data", ["../words/b*/*.flac", str(tmp_path / "words/one/*")])
    assert [span.path.resolve() for span in found] == [path.resolve() for path in wanted]


def test_a_refit_keeps_half_of_the_selection_part() -> None:
    def dataset(groups: str, verification: bool = False) -> Dataset:
        clips = tuple(Clip(Span(Path(str(n))), n % 2, group) for n, group in enumerate(groups))
        return Dataset(Path(), ("a", "b"), (), clips, Report, "speaker", verification=verification)

    learnt, kept = refit_halves(dataset("aabbccdd"))
    assert ({clip.group for clip in learnt}, {clip.group for clip in kept}) == (set("ac"), set("bd"))
    learnt, kept = refit_halves(dataset("aaaaaaaa"))
    assert [clip.target for clip in learnt] == [clip.target for clip in kept] == [0, 1, 0, 1]
    assert len(refit_halves(dataset("aabbccdd", verification=True))[1]) == 4
    with pytest.raises(BadDataset, match="four speakers or more in the selection part, got 3"):
        refit_halves(dataset("aabbcc", verification=True))


def test_a_refit_keeps_a_clip_of_every_class() -> None:
    clips = tuple(Clip(Span(Path(str(n))), target, None) for n, target in enumerate((0, 1, 2, 2, 2)))
    learnt, kept = refit_halves(Dataset(Path(), ("a", "b", "c"), (), clips, Report, "speaker"))
    assert [clip.span.path.name for clip in kept] == ["0", "1", "3"]
    assert [clip.span.path.name for clip in learnt] == ["2", "4"]


def test_trial_judge_hears_noise_too(tiny_wav2vec2: Backbone, tmp_path: Path) -> None:
    dataset = load_dataset(make_speakers(tmp_path / "data"), Source.model_validate(SPEAKERS))
    noises = [Span(path) for path in sorted((tmp_path / "noise").iterdir())]
    judge = TrialJudge(dataset.selection, noises, 0, Recordings())
    noisy = list(judge._lists[1].distortions.values())
    assert {each.snr_db for each in noisy} == {15.0}  # as the report's condition has it
    assert len({each.noise for each in noisy}) > 1
    settled = judge.settle(judge.answer(inference(tiny_wav2vec2, 8, TaskType.VERIFICATION)))
    assert list(settled["metrics"]) == ["clean", "noisy"]
    assert settled["metrics"]["clean"] != settled["metrics"]["noisy"]
    assert -1 <= settled["threshold"] <= 1
    # The threshold is where misses and false accepts meet over both lists.
    gaps = [each["miss_at_threshold"] - each["false_accept_at_threshold"] for each in settled["metrics"].values()]
    assert sum(gaps) == pytest.approx(0.0, abs=0.1)


def test_noises_of_selection_are_not_trained_on() -> None:
    noises = [Span(Path(str(index))) for index in range(9)]
    training, kept = split_noises(noises)
    assert set(training) | set(kept) == set(noises)
    assert not set(training) & set(kept)
    assert split_noises(noises[:2]) == (tuple(noises[:2]), ())


def test_trials_with_unreadable_clips_are_left_out(tiny_wav2vec2: Backbone, tmp_path: Path) -> None:
    source = Source.model_validate(SPEAKERS)
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
