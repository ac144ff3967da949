"""Pre-training in miniature, on generated audio: it learns, it resumes, and others can load what it writes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Wav2Vec2Model

from service.training.pretrain import CHECKPOINT, run
from service.training.pretraining.augment import Distortion, cut, distort, mix_up
from service.training.pretraining.corpus import Corpus, read_corpus
from service.training.pretraining.pace import Pace
from service.training.pretraining.recipe import HeldOut, PretrainRecipe, read_recipe
from service.training.pretraining.sampling import Sampler
from service.training.pretraining.sounds import SOUNDS, synthetic_bank
from service.training.pretraining.student import LogMel
from tests.training.chords import Journal, make_corpus
from tests.training.miniature import make_esc, write_clip, write_table

ROOT = Path(__file__).parent.parent.parent
TINY: dict[str, Any] = {
    "threads": 1,
    "checkpoint_steps": 10,
    "geometry": {
        "width": 32,
        "layers": 1,
        "heads": 2,
        "feed_forward": 32,
        "conv_dim": [31, 24, 24, 24],
        "conv_kernel": [400, 3, 1, 3],
        "conv_stride": [80, 2, 1, 4],
    },
    "filter_bank": {"steps": 40, "rows": 6, "window": 3000, "learning_rate": 4e-3},
    "tasks": {
        "steps": 40,
        "warm_up": 5,
        "thaw": 0.5,
        "weights": {"statistics": 1.0},
        "sizes": {"words": 8, "word_window": 6000, "speakers": 4, "events": 3, "sounds": 1, "long_window": 8000},
    },
}


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return make_corpus()


@pytest.fixture(scope="module")
def finished(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Journal]:
    out, journal = tmp_path_factory.mktemp("run"), Journal()
    run(PretrainRecipe.model_validate(TINY), corpus, out, resume=True, report=journal)
    return out, journal


def test_tasks_are_learnt(finished: tuple[Path, Journal]) -> None:
    losses = finished[1].losses["tasks"]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:5])


def test_others_load_what_is_written(finished: tuple[Path, Journal]) -> None:
    model = Wav2Vec2Model.from_pretrained(finished[0], dtype=torch.float32).eval()
    with torch.no_grad():
        out = model(torch.zeros(1, 8000)).last_hidden_state
    assert out.shape[2] == 32
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("stop", [("filter bank", 14), ("tasks", 3), ("tasks", 24)])
def test_resumed_run_equals_uninterrupted(
    finished: tuple[Path, Journal], corpus: Corpus, tmp_path: Path, stop: tuple[str, int]
) -> None:
    recipe = PretrainRecipe.model_validate(TINY)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, corpus, tmp_path, resume=True, report=Journal(stop))
    run(recipe, corpus, tmp_path, resume=True)
    for name in (CHECKPOINT, "model.safetensors"):
        resumed, whole = load_file(tmp_path / name), load_file(finished[0] / name)
        assert resumed.keys() == whole.keys()
        assert all(torch.equal(resumed[key], whole[key]) for key in whole)


def test_a_run_can_start_afresh(finished: tuple[Path, Journal], corpus: Corpus) -> None:
    journal = Journal(("filter bank", 2))
    with pytest.raises(KeyboardInterrupt):
        run(PretrainRecipe.model_validate(TINY), corpus, finished[0], resume=False, report=journal)
    assert len(journal.losses["filter bank"]) == 1


def make_corpora(root: Path) -> Path:
    """Every corpus that pre-training reads, with report parts whose files do not exist."""
    arabic, digits, extra = root / "arabic-speech-commands", root / "fsdd", root / "pretraining-speech"
    commands, voices = root / "speech-commands-v0.01-sample", root / "speechocean762-sv"
    make_esc(root / "esc10", clips=1)
    write_clip(arabic / "background_noise" / "boiler.flac", 100)
    names = [f"dataset/up/{speaker:08d}_NO_02.flac" for speaker in range(3)]
    write_table(arabic / "train.csv", [{"file": name, "class": "up"} for name in names])
    takes = [{"filename": f"{s}.flac", "digit": 3, "speaker": s, "split": "train"} for s in ("jackson", "theo")]
    write_table(digits / "metadata.csv", [*takes, {**takes[0], "filename": "none.flac", "split": "val"}])
    write_table(extra / "clips.csv", [{"filename": "a.flac", "keyword": "", "speaker": "103"}])
    write_clip(commands / "bed" / "a.flac", 300)
    (commands / "training_list.txt").write_text("bed/a.flac\n", encoding="utf-8")
    (voices / "wav").mkdir(parents=True)
    (voices / "train_list.txt").write_text("S1 a.flac\nS2 b.flac\n", encoding="utf-8")
    write_table(voices / "train_utterances.csv", [{"path": "a.flac", "text": "GOOD"}])
    write_table(voices / "noise15db.csv", [{"path": "x", "noise_file": "1-01-A-1.flac"}])
    written = [arabic / n for n in names] + [digits / str(t["filename"]) for t in takes]
    for path in [*written, extra / "a.flac", voices / "wav" / "a.flac", voices / "wav" / "b.flac"]:
        write_clip(path, 400)
    return root


def test_corpora_hold_out_what_is_asked_and_never_the_report_parts(tmp_path: Path) -> None:
    data = make_corpora(tmp_path)
    read = read_corpus(data, HeldOut(keyword_speakers=1, digit_speakers=1, verification_speakers=1, event_folds=(3,)))
    assert {c.group for c in read.train if c.task == "events"} == {"fold1", "fold2"}
    held = [(c.task, c.label, c.group) for c in read.selection if c.task != "events"]
    assert held == [
        ("words", "ar:up", "arabic"),
        ("words", "en:three", "digits"),
        ("speakers", "S2", "speechocean"),
    ]
    assert [(c.label, c.text) for c in read.train if c.text] == [("en:bed", "bed"), ("S1", "GOOD")]
    assert {c.group for c in read.selection if c.task == "events"} == {"fold3"}
    noise = [c.label for c in read.train if c.task == "noise" and c.group == "esc10"]
    assert len(noise) == 2 * 3 - 1  # the reserved one is missing


def test_a_voice_at_another_speed_is_another_speaker(corpus: Corpus) -> None:
    recipe = PretrainRecipe.model_validate(
        {**TINY, "tasks": {**TINY["tasks"], "speaker_speeds": [1.0, 0.8], "sizes": {"speakers": 64}}}
    )
    sampler = Sampler(corpus, recipe.tasks, seed=0)
    assert sampler.classes.speakers == 6
    assert set(sampler.batch(0).speaker_labels.tolist()) == set(range(6))


def spoken(corpus: Corpus) -> Corpus:
    """Voices that say something, and a synthesised one."""
    said = [replace(c, phonemes=tuple("aba")) for c in corpus.train if c.task == "speakers"]
    others = [c for c in corpus.train if c.task != "speakers"]
    long = replace(said[0], samples=np.zeros(99_999, np.int16), phonemes=("never",))
    synthesised = replace(said[0], task="utterances", label="", group="synthesised", phonemes=tuple("cab"))
    return Corpus((*others, *said, long, synthesised), ())


SPOKEN = {**TINY["tasks"], "sizes": {**TINY["tasks"]["sizes"], "utterances": 4, "utterance_window": 12_000}}


def test_utterances_are_whole_and_numbered_by_phoneme(corpus: Corpus) -> None:
    recipe = PretrainRecipe.model_validate({**TINY, "tasks": SPOKEN})
    sampler = Sampler(spoken(corpus), recipe.tasks, seed=0)
    assert sampler.symbols == ["a", "b", "c"]
    batches = [sampler.batch(step).utterances for step in range(6)]
    assert {tuple(row) for said in batches if said for row in said.phonemes.tolist()} == {(1, 2, 1), (3, 1, 2)}
    for said in batches:
        assert said is not None
        assert said.waveform.shape == (4, 12_000)
        assert said.counts.tolist() == [3] * 4
        assert (said.samples <= 12_000).all()


def test_phonemes_are_learnt(corpus: Corpus, tmp_path: Path) -> None:
    tasks = {**SPOKEN, "recorded_share": 1.0, "weights": {"phonemes": 3.0}}
    geometry = {**TINY["geometry"], "conv_stride": [80, 2, 1, 2]}
    recipe = PretrainRecipe.model_validate({**TINY, "geometry": geometry, "tasks": tasks})
    journal = Journal()
    run(recipe, spoken(corpus), tmp_path, resume=True, report=journal)
    learnt = journal.parts["phonemes"]
    assert np.mean(learnt[-5:]) < 0.6 * np.mean(learnt[:3])


def test_a_run_starts_from_a_backbone(finished: tuple[Path, Journal], corpus: Corpus, tmp_path: Path) -> None:
    journal, tasks = Journal(), {**TINY["tasks"], "steps": 1, "learning_rate": 1e-9}
    started = {**TINY, "start": str(finished[0]), "tasks": tasks}
    run(PretrainRecipe.model_validate(started), corpus, tmp_path, resume=True, report=journal)
    assert journal.losses["filter bank"] == []
    before, after = (load_file(folder / "model.safetensors") for folder in (finished[0], tmp_path))
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"start": "embedded"}, "geometry of the recipe"),
        ({"start": "/nowhere"}, "nowhere"),
    ],
)
def test_a_start_that_does_not_fit_is_named(
    given: dict[str, Any], message: str, corpus: Corpus, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        run(PretrainRecipe.model_validate({**TINY, **given}), corpus, tmp_path, resume=True)


def test_windows_have_their_length_and_levels() -> None:
    rng = np.random.default_rng(0)
    for samples in (100, 5_000, 50_000):
        windows = np.stack([cut(rng.integers(-9, 9, samples).astype(np.int16), 8_000, s, rng) for s in (0.8, 1, 1.2)])
        assert windows.shape == (3, 8_000)
        assert distort(windows, [np.ones(10, np.int16)], Distortion(noise_chance=1.0), rng).isfinite().all()
    blended, partners, share = mix_up(windows, 1.0, rng)
    assert blended.shape == windows.shape
    assert sorted(partners) == [0, 1, 2]
    assert ((share >= 0.5) & (share <= 1)).all()


def test_statistics_are_of_the_loud_frames_alone() -> None:
    rng = torch.Generator().manual_seed(0)
    loud, quiet = torch.randn(1, 8_000, generator=rng), 1e-3 * torch.randn(1, 2_000, generator=rng)
    log_mel = LogMel(8)
    whole, speech = log_mel.statistics(torch.cat([loud, quiet], 1)), log_mel.statistics(loud)
    assert whole.shape == (1, 16)
    assert (whole - speech).abs().max() < 0.15
    assert (log_mel.statistics(quiet) - speech).abs().max() > 1.0


def test_sounds_differ_and_are_finite() -> None:
    sounds, labels = synthetic_bank(2, 8_000, np.random.default_rng(0))
    assert sounds.shape == (2 * len(SOUNDS), 8_000)
    assert labels.tolist() == sorted(labels.tolist())
    assert (np.abs(sounds).max(axis=1) > 10_000).all()


def test_pace_settles_on_what_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("service.training.pretraining.pace.time.perf_counter", lambda: clock[0])
    used: list[int] = []
    monkeypatch.setattr("service.training.pretraining.pace.torch.set_num_threads", used.append)
    pace = Pace(choices=(1, 2))
    for _ in range(60):
        with pace.step():
            clock[0] += 1.0 / used[-1]
    assert used[:27] == [1] * 27
    assert used[30:57] == [2] * 27


def test_committed_recipe_is_the_embedded_backbone() -> None:
    recipe = read_recipe(ROOT / "adapters" / "recipes" / "pretrain-embedded.toml")
    config: dict[str, Any] = Wav2Vec2Model.config_class.from_pretrained(ROOT / "service/model/embedded").to_dict()
    assert tuple(config["conv_dim"]) == recipe.geometry.conv_dim
    assert tuple(config["conv_stride"]) == recipe.geometry.conv_stride
    assert config["hidden_size"] == recipe.geometry.width
    assert config["num_hidden_layers"] == recipe.geometry.layers
