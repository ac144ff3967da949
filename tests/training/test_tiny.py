"""Tiny sets, whose epoch is chosen by folds; and what TensorBoard is told of a run."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service.training.checkpoint import read_epochs
from service.training.datasets.dataset import Clip, Dataset, Report, Span
from service.training.recipe import BadRecipe, parse_recipe, read_recipe
from service.training.selection import deal
from service.training.shipped import find_recipe
from tests.training.miniature import make_keywords, write_clip
from tests.training.test_loop import classifier, run, verifier


def test_five_clips_a_class_are_enough(tiny_wav2vec2_dir: Path, tmp_path: Path) -> None:
    """Each of the four that are not reported chooses the epoch, left out, and is trained on in the end."""
    for label, pitch in (("low", 300), ("high", 900)):
        for take in range(5):
            write_clip(tmp_path / "data" / label / f"{take}.flac", pitch * (1 + take / 50), seed=take)
    recipe = read_recipe(find_recipe("folders"), changes=["optimiser.epochs=3", "name=mine"])
    recipe = recipe.model_copy(update={"backbone": str(tiny_wav2vec2_dir)})
    result = run(recipe, tmp_path / "data", tmp_path / "out")
    assert (result.metrics["report"]["clips"], result.metrics["selection"]["clips"]) == (2, 8)
    assert result.metrics["selection"]["accuracy"] >= 0.75
    epochs = read_epochs(tmp_path / "out")
    stages = [f"fold {number}" for number in (1, 2, 3, 4) for _ in range(3)]
    assert [each.stage for each in epochs] == stages + ["refit"] * result.chosen_epoch
    figures = {number: [each.figure for each in epochs if each.epoch == number and each.figure] for number in (1, 2, 3)}
    best = max(sum(each) for each in figures.values())
    assert sum(figures[result.chosen_epoch]) == best  # of answers to all eight clips
    card = (tmp_path / "out" / "README.md").read_text()
    assert "together make 4 folds" in card
    assert "The report part has no file of the training part" in card
    with pytest.raises(BadRecipe, match="folds do not go with verification"):
        parse_recipe(verifier(tiny_wav2vec2_dir, folds=3))


def test_folds_hold_groups_together() -> None:
    recipe = parse_recipe(classifier(Path("x"), folds=3))

    def dealt(groups: Sequence[str | None], classes: int = 2) -> list[list[int]]:
        clips = tuple(Clip(Span(Path(str(n))), n % classes, group) for n, group in enumerate(groups))
        dataset = Dataset(Path(), ("a", "b"), clips[2:], clips[:2], Report, "speaker")
        folds = deal(recipe, dataset)
        assert all({*learnt, *held} == {*clips} and not {*learnt} & {*held} for learnt, held in folds)
        return [sorted(int(clip.span.path.name) for clip in held) for _, held in folds]

    assert dealt("aabbccdd") == [[0, 1, 2, 3], [4, 5], [6, 7]]
    assert sorted(map(len, dealt([None] * 6))) == [2, 2, 2]
    assert sorted(map(len, dealt("aaaaaa"))) == [2, 2, 2]  # one speaker made all
    assert len(dealt([None] * 4)) == 2  # as a class has two clips
    assert deal(recipe.model_copy(update={"folds": 0}), Dataset(Path(), (), (), (), Report, "speaker")) == []


def test_tensorboard_is_told_every_epoch(
    tiny_wav2vec2_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, float, int]] = []

    class Writer(nullcontext[Any]):
        def __init__(self, folder: str) -> None:
            super().__init__(self)
            assert folder == str(tmp_path / "out" / "tensorboard")

        def add_scalar(self, *scalar: Any) -> None:
            told.append(scalar)

    data = make_keywords(tmp_path / "data", speakers=3, takes=1)
    recipe = parse_recipe(classifier(tiny_wav2vec2_dir, optimiser={"epochs": 2, "batch": 6}))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(BadRecipe, match="pip install tensorboard"):
        run(recipe, data, tmp_path / "out", tensorboard=True)
    assert not (tmp_path / "out").exists()
    monkeypatch.setitem(sys.modules, "tensorboardX", SimpleNamespace(SummaryWriter=Writer))
    run(recipe, data, tmp_path / "out", tensorboard=True, report=False)
    epochs = read_epochs(tmp_path / "out")
    expected = [("loss", epochs[0].loss), ("selection accuracy", epochs[0].figure), ("rate", epochs[0].rate)]
    assert told[:3] == [(f"train/{name}", value, 1) for name, value in expected]
    assert [epoch for _, _, epoch in told] == [1] * 3 + [2] * 3
