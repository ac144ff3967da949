"""Interrupted runs: a resumed one ends as an uninterrupted one, to the last bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.registry.bundle import read_bundle
from service.training import run as training_run
from service.training.checkpoint import CHECKPOINT, BadCheckpoint, Progress, load_progress, save_progress
from service.training.loop import train
from tests.training.miniature import make_keywords, make_speakers
from tests.training.test_loop import classifier, verifier

WriteRecipe = Callable[..., Path]


class Killed(BaseException):
    """Stands for whatever ends a process."""


def train_with_kills(monkeypatch: pytest.MonkeyPatch, saves: list[int], *where: Path, **options: Any) -> None:
    """Train; the run dies right behind the so-manieth checkpoint, again and again, until no death is left."""
    save = training_run.save_progress
    written = [0]

    def save_or_die(path: Path, run: str, progress: Progress) -> None:
        save(path, run, progress)
        written[0] += 1
        if written[0] in saves:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(training_run, "save_progress", save_or_die)
        for _ in saves:
            with pytest.raises(Killed):
                train(*where, dtype="float32", progress=False, **options)
        train(*where, dtype="float32", progress=False, **options)


@pytest.mark.parametrize("method", ["ipet", "full"])
def test_resumed_equals_uninterrupted(
    write_recipe: WriteRecipe, tiny_wav2vec2_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    data = make_keywords(tmp_path / "data", speakers=3, takes=2)
    optimiser = {"epochs": 3, "batch": 6, "lr": 1e-3}
    tables = classifier(tiny_wav2vec2_dir, method=method, refit=True, optimiser=optimiser, augment={"gain": 6})
    recipe = write_recipe(**tables)
    train(recipe, data, tmp_path / "whole", dtype="float32", progress=False, report=False)
    train_with_kills(monkeypatch, [1, 3, 4], recipe, data, tmp_path / "torn", report=False)
    whole, torn = (read_bundle(tmp_path / name) for name in ("whole", "torn"))
    assert whole.weights == torn.weights
    assert whole.config == torn.config
    assert not (tmp_path / "torn" / CHECKPOINT).exists()
    if method == "full":
        backbones = [(tmp_path / name / "backbone" / "model.safetensors").read_bytes() for name in ("whole", "torn")]
        assert backbones[0] == backbones[1]


def test_resumed_verification_equals_uninterrupted(
    write_recipe: WriteRecipe, tiny_wav2vec2_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_speakers(tmp_path / "data", clips=3)
    recipe = write_recipe(**verifier(tiny_wav2vec2_dir, optimiser={"epochs": 2, "batch": 8, "lr": 1e-2}))
    train(recipe, data, tmp_path / "whole", dtype="float32", progress=False, report=False)
    train_with_kills(monkeypatch, [1], recipe, data, tmp_path / "torn", report=False)
    assert read_bundle(tmp_path / "whole").weights == read_bundle(tmp_path / "torn").weights


def test_another_runs_checkpoint_is_refused(
    write_recipe: WriteRecipe, tiny_wav2vec2_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = make_keywords(tmp_path / "data", speakers=3, takes=1), tmp_path / "out"
    tables = classifier(tiny_wav2vec2_dir, optimiser={"epochs": 1, "batch": 6})
    save_progress(out / CHECKPOINT, "another", Progress(epoch=1))
    recipe = write_recipe(**tables)
    with pytest.raises(BadCheckpoint, match="--fresh"):
        train(recipe, data, out, dtype="float32", progress=False, report=False)
    train(recipe, data, out, dtype="float32", progress=False, report=False, fresh=True)
    assert read_bundle(out).config


def test_a_checkpoint_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT
    assert load_progress(path, "run") == Progress()
    save_progress(path, "run", Progress(epoch=3, chosen=2, best=(0.5, -0.1)))
    path.with_name(path.name + ".partial").write_bytes(b"cut off")  # a death while the next one is written
    read = load_progress(path, "run")
    assert (read.epoch, read.chosen, read.best) == (3, 2, (0.5, -0.1))
