"""Pre-training in miniature: it learns without labels, resumes to the same bits, and others load what it writes."""

import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model

from service.model.loading import load_backbone
from service.training.checkpoint import CHECKPOINT, BadCheckpoint
from service.training.datasets.dataset import BadDataset
from service.training.pretrain import Stopped, pretrain, rate, run
from service.training.pretraining.clips import read_clips
from service.training.pretraining.recipe import PretrainRecipe, read_recipe
from service.training.pretraining.teachers import MissingTeacher
from service.training.recipe import BadRecipe
from service.training.recordings import Recordings
from tests.backbones import save_tiny_wav2vec2
from tests.training.miniature import write_clip

ROOT = Path(__file__).parent.parent.parent
Losses = list[dict[str, float]]


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audio")
    for number in range(6):
        write_clip(folder / f"{number}.flac", 250.0 * 1.3**number, seconds=0.3 + 0.2 * number, seed=number)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_wav2vec2(tmp_path_factory.mktemp("teacher"), norm="layer")
    Wav2Vec2FeatureExtractor(sampling_rate=8_000, do_normalize=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def recipe(teacher: Path) -> PretrainRecipe:
    return PretrainRecipe.model_validate(
        {
            "threads": 1,
            "steps": 24,
            "warm_up": 4,
            "cool_down": 6,
            "learning_rate": 3e-3,
            "geometry": {
                "width": 32,
                "layers": 1,
                "heads": 2,
                "feed_forward": 32,
                "conv_dim": [31, 24, 24, 24],
                "conv_kernel": [400, 3, 1, 3],
                "conv_stride": [80, 2, 1, 4],
            },
            "teachers": [{"name": str(teacher), "of_clip": True}, {"name": str(teacher)}],
            "audio": [
                {"rows": 6, "window": 0.6, "speeds": [1.0, 1.2], "noise": True},
                {"rows": 2, "window": 0.8, "files": "[45].flac"},
            ],
        }
    )


def learn(recipe: PretrainRecipe, audio: Path, out: Path, stop: int = 0, **options: Any) -> Losses:
    """Run; from within step `stop`, a kill that nothing is saved before."""
    told: Losses = []

    def report(step: int, losses: dict[str, float]) -> None:
        if step == stop:
            raise KeyboardInterrupt
        told.append(losses)

    run(recipe, read_clips(recipe, [audio], Recordings()), out, report=report, **options)
    return told


@pytest.fixture(scope="module")
def finished(recipe: PretrainRecipe, audio: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Losses]:
    out = tmp_path_factory.mktemp("run")
    return out, learn(recipe, audio, out)


def same(one: Path, other: Path) -> bool:
    """Whether backbone, readouts and moments are equal to the last bit."""
    for name in (CHECKPOINT, "model.safetensors"):
        first, second = load_file(one / name), load_file(other / name)
        assert first.keys() == second.keys()
        if not all(torch.equal(first[key], second[key]) for key in first):
            return False
    return True


def test_everything_is_learnt(finished: tuple[Path, Losses], teacher: Path) -> None:
    names = {"spectrum", str(teacher)}
    assert set(finished[1][0]) == names | {f"{name}_middle" for name in names}
    for name in ("spectrum", str(teacher)):
        first, last = (np.mean([losses[name] for losses in part]) for part in (finished[1][:4], finished[1][-4:]))
        assert last < 0.95 * first, name


def test_others_load_what_is_written(finished: tuple[Path, Losses]) -> None:
    model = Wav2Vec2Model.from_pretrained(finished[0], dtype=torch.float32).eval()
    with torch.no_grad():
        out = model(torch.zeros(1, 8000)).last_hidden_state
    assert out.shape[2] == load_backbone(str(finished[0]), "cpu", "float32").spec.hidden_size == 32
    assert torch.isfinite(out).all()


def test_the_same_seed_makes_the_same_weights(
    recipe: PretrainRecipe, finished: tuple[Path, Losses], audio: Path, tmp_path: Path
) -> None:
    learn(recipe, audio, tmp_path / "again")
    assert same(finished[0], tmp_path / "again")
    learn(recipe.model_copy(update={"seed": 2}), audio, tmp_path / "other")
    assert not same(finished[0], tmp_path / "other")


@pytest.mark.parametrize("stop", [2, 21])
def test_a_killed_run_goes_on_to_the_same_weights(
    recipe: PretrainRecipe, finished: tuple[Path, Losses], audio: Path, tmp_path: Path, stop: int
) -> None:
    often = recipe.model_copy(update={"checkpoint_minutes": 1e-9})
    with pytest.raises(KeyboardInterrupt):
        learn(often, audio, tmp_path, stop)
    assert len(learn(recipe, audio, tmp_path)) == recipe.steps - (stop - 1)
    assert same(finished[0], tmp_path)


def test_a_signal_ends_a_run_behind_a_whole_step(
    recipe: PretrainRecipe, finished: tuple[Path, Losses], audio: Path, tmp_path: Path
) -> None:
    def report(step: int, losses: dict[str, float]) -> None:
        if step == 5:
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="stopped after 5 of 24 steps; the same command goes on"):
        run(recipe, read_clips(recipe, [audio], Recordings()), tmp_path, report=report)
    assert signal.getsignal(signal.SIGTERM) is before
    assert len(learn(recipe, audio, tmp_path)) == 19
    assert same(finished[0], tmp_path)


def test_a_run_in_a_thread_leaves_signals_alone(recipe: PretrainRecipe, audio: Path, tmp_path: Path) -> None:
    short = recipe.model_copy(update={"steps": 6})
    thread = threading.Thread(target=learn, args=(short, audio, tmp_path))
    thread.start()
    thread.join()
    assert (tmp_path / "model.safetensors").exists()


def test_another_recipes_checkpoint_is_refused(
    recipe: PretrainRecipe, finished: tuple[Path, Losses], audio: Path
) -> None:
    with pytest.raises(BadCheckpoint, match="another run"):
        learn(recipe.model_copy(update={"learning_rate": 1e-3}), audio, finished[0])


def test_the_rate_rises_stays_and_falls(recipe: PretrainRecipe) -> None:
    rates = [rate(recipe, step) for step in range(24)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert set(rates[4:19]) == {1.0}
    assert rates[19:] == pytest.approx([5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("steps = 'many'", BadRecipe, r"steps: .*got 'many'"),
        ("labels = 3", BadRecipe, "labels: unknown key"),
        ("steps = 5", BadRecipe, "cool_down: 2000 is more than all 5 steps"),
        ("[augment]\nspeed = 0.1", BadRecipe, r"augment\.speed: not used in pre-training; codec, gain"),
        (
            "[[audio]]\nwindow = 0.3\n[geometry]\nconv_stride = [80, 2, 1, 1, 2, 2, 2, 1]",
            BadRecipe,
            "less than two frames",
        ),
        ("[[audio]]\nfiles = '*.mp3'", BadDataset, r"audio\.files '\*\.mp3': no audio in "),
        ("[[audio]]\nlisted = 'train.csv'", BadDataset, "there is no table train.csv in "),
        ("[[teachers]]\nname = '/nowhere'", MissingTeacher, "teacher '/nowhere' is no encoder"),
    ],
)
def test_what_cannot_be_is_named(text: str, error: type[Exception], message: str, audio: Path, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        pretrain(write(tmp_path / "recipe.toml", text), [audio], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["resemblyzer", "pyopen-wakeword"])
def test_a_teacher_that_is_not_installed_is_named(
    name: str, audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.training.pretraining.teachers.find_spec", lambda package: None)
    recipe = write(tmp_path / "recipe.toml", f"[[teachers]]\nname = '{name}'")
    with pytest.raises(MissingTeacher, match=f"'{name}' is not installed: pip install --no-deps {name}"):
        pretrain(recipe, [audio], tmp_path / "out")


def test_a_folder_without_audio_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no audio")
    with pytest.raises(BadDataset, match=f"no audio in {tmp_path}; expected files with .*flac"):
        pretrain(write(tmp_path / "recipe.toml", ""), [tmp_path], tmp_path / "out")
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    with pytest.raises(BadDataset, match="none of the 1 files"):
        pretrain(write(tmp_path / "recipe.toml", ""), [tmp_path], tmp_path / "out")


def test_committed_recipe_leaves_the_report_parts_out() -> None:
    recipe = read_recipe(ROOT / "adapters" / "recipes" / "pretrain-embedded.toml")
    read = {(section.files, section.listed) for section in recipe.audio}
    assert ("arabic-speech-commands/dataset/**/*.flac", "arabic-speech-commands/train.csv:file") in read
    assert ("speechocean762-sv/wav/**/*.ogg", "speechocean762-sv/train_utterances.csv:path") in read
    folds = {files for files, _ in read if "esc10" in files}
    assert folds == {"esc10/audio/[123]-*.flac"}
    assert not [files for files, _ in read if "music-smoke" in files]
    noisy = [section for section in recipe.audio if section.noise and "esc10" in section.files]
    assert [section.unlisted for section in noisy] == ["speechocean762-sv/noise15db.csv:noise_file"]


@pytest.mark.gpu
def test_it_learns_on_a_gpu(recipe: PretrainRecipe, audio: Path, tmp_path: Path) -> None:
    told = learn(recipe, audio, tmp_path, device="cuda")
    assert sum(told[-1].values()) < sum(told[0].values())
    assert (tmp_path / "model.safetensors").exists()
