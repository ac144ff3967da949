"""Interrupted runs: a resumed one ends as an uninterrupted one, to the last bit."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from service.registry.bundle import read_bundle
from service.training import run as training_run
from service.training.checkpoint import (
    CHECKPOINT,
    EPOCHS_FILE,
    BadCheckpoint,
    EpochFigures,
    Progress,
    load_progress,
    read_epochs,
    save_progress,
)
from service.training.fit import Fit
from service.training.loop import train
from service.training.outcome import Outcome, read_outcome
from service.training.recipe import Recipe, parse_recipe
from tests.training.miniature import make_keywords, make_speakers, make_table
from tests.training.test_loop import classifier, verifier


class Killed(BaseException):
    """Stands for whatever ends a process."""


def train_with_kills(monkeypatch: pytest.MonkeyPatch, saves: list[int], *where: Recipe | Path, **options: Any) -> None:
    """Train; the run dies right behind the so-manieth checkpoint, again and again, until no death is left."""
    save = training_run.save_progress
    written = [0]

    def save_or_die(path: Path, progress: Progress) -> None:
        save(path, progress)
        written[0] += 1
        if written[0] in saves:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(training_run, "save_progress", save_or_die)
        for _ in saves:
            with pytest.raises(Killed):
                train(*where, dtype="float32", progress=False, **options)
        train(*where, dtype="float32", progress=False, **options)


@pytest.mark.parametrize(("method", "folds"), [("ipet", 0), ("full", 0), ("ipet", 2)])
def test_resumed_equals_uninterrupted(
    tiny_wav2vec2_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, folds: int
) -> None:
    data = make_keywords(tmp_path / "data", speakers=3, takes=2)
    optimiser = {"epochs": 3, "batch": 6, "lr": 1e-3}
    tables = classifier(tiny_wav2vec2_dir, method=method, folds=folds, refit=True, optimiser=optimiser)
    recipe = parse_recipe(tables)
    train(recipe, data, tmp_path / "whole", dtype="float32", progress=False, report=False)
    train_with_kills(monkeypatch, [1, 3, 4, *([6] if folds else [])], recipe, data, tmp_path / "torn", report=False)
    whole, torn = (read_bundle(tmp_path / name) for name in ("whole", "torn"))
    assert whole.weights == torn.weights
    assert whole.config == torn.config
    assert len(read_epochs(tmp_path / "torn")) == len(read_epochs(tmp_path / "whole"))
    if method == "full":
        backbones = [(tmp_path / name / "backbone" / "model.safetensors").read_bytes() for name in ("whole", "torn")]
        assert backbones[0] == backbones[1]


def test_resumed_verification_equals_uninterrupted(
    tiny_wav2vec2_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_speakers(tmp_path / "data", clips=3)
    recipe = parse_recipe(verifier(tiny_wav2vec2_dir, optimiser={"epochs": 2, "batch": 8, "lr": 1e-2}))
    train(recipe, data, tmp_path / "whole", dtype="float32", progress=False, report=False)
    train_with_kills(monkeypatch, [1], recipe, data, tmp_path / "torn", report=False)
    assert read_bundle(tmp_path / "whole").weights == read_bundle(tmp_path / "torn").weights


def test_another_runs_checkpoint_is_refused(
    tiny_wav2vec2_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = make_keywords(tmp_path / "data", speakers=3, takes=1), tmp_path / "out"
    tables = classifier(tiny_wav2vec2_dir, optimiser={"epochs": 1, "batch": 6})
    save_progress(out / CHECKPOINT, Progress("another", epoch=1))
    recipe = parse_recipe(tables)
    with pytest.raises(BadCheckpoint, match="--fresh"):
        train(recipe, data, out, dtype="float32", progress=False, report=False)
    train(recipe, data, out, dtype="float32", progress=False, report=False, fresh=True)
    assert read_bundle(out).config


def finish(*where: Recipe | Path, **options: Any) -> Outcome:
    return train(*where, dtype="float32", progress=False, **options)


def test_the_report_part_is_measured_later_without_training_again(
    tiny_wav2vec2_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = make_keywords(tmp_path / "data", speakers=3, takes=1), tmp_path / "out"
    recipe = parse_recipe(classifier(tiny_wav2vec2_dir, optimiser={"epochs": 2, "batch": 6}, refit=True))
    finish(recipe, data, out, report=False)
    weights, epochs = read_bundle(out).weights, read_epochs(out)
    monkeypatch.setattr(Fit, "run_epoch", None)
    later = finish(recipe, data, out)
    assert later.metrics["report"]["clips"] == 6
    assert read_bundle(out).weights == weights
    assert later.chosen_epoch == read_outcome(out).chosen_epoch
    assert len(read_epochs(out)) == len(epochs) == 2
    assert not (out / CHECKPOINT).exists()
    assert finish(recipe, data, out).again


def test_a_fresh_run_that_was_interrupted_goes_on(
    tiny_wav2vec2_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the figures nor the backbone of the run in whose place it was begun pass for its own."""
    data, out = make_keywords(tmp_path / "data", speakers=3, takes=1), tmp_path / "out"
    tables = classifier(tiny_wav2vec2_dir, optimiser={"epochs": 2, "batch": 6}, method="full")
    finish(parse_recipe(tables), data, out)
    assert (out / "backbone").is_dir()
    left = {path.name for path in out.iterdir()}
    recipe = parse_recipe({**tables, "method": "ipet", "seed": 1})
    (out / "mine.txt").touch()

    def die(path: Path, progress: Progress) -> None:
        save_progress(path, progress)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(training_run, "save_progress", die)
        with pytest.raises(Killed):
            finish(recipe, data, out, fresh=True)
    assert {path.name for path in out.iterdir()} == {CHECKPOINT, EPOCHS_FILE, "mine.txt"}
    result = finish(recipe, data, out)
    assert not result.again
    assert {path.name for path in out.iterdir()} == left - {"backbone"} | {"mine.txt"}


def test_a_run_is_told_by_its_clips_and_labels_not_by_where_they_lie(
    tiny_wav2vec2_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = make_table(tmp_path / "data"), tmp_path / "out"
    tables = classifier(tiny_wav2vec2_dir, data={"kind": "csv"}, optimiser={"epochs": 1, "batch": 6})
    recipe = parse_recipe(tables)
    assert not finish(recipe, data, out).again
    monkeypatch.chdir(tmp_path)
    assert finish(recipe, Path("data"), out).again
    table = data / "clips.csv"
    table.write_text(table.read_text().replace(",low,", ",deep,"))  # whose index is another, and then is not
    for label in ("deep", "mute"):
        table.write_text(table.read_text().replace(",deep,", f",{label},"))
        with pytest.raises(BadCheckpoint, match="finished run of another recipe, data set"):
            finish(recipe, data, out)


def test_a_checkpoint_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT
    assert load_progress(path, "run") == Progress("run")
    ended = [EpochFigures(epoch, 1 / epoch, None) for epoch in (1, 2, 3)]
    save_progress(path, Progress("run", epoch=3, epochs=ended, chosen=2, best=(0.5, -0.1)))
    with (tmp_path / EPOCHS_FILE).open("a") as file:
        file.write(json.dumps(asdict(ended[0])) + "\n")  # a death between the two files
    path.with_name(path.name + ".partial").write_bytes(b"cut off")  # a death while the next one is written
    read = load_progress(path, "run")
    assert (read.epoch, read.epochs, read.chosen, read.best) == (3, ended, 2, (0.5, -0.1))
