"""What pre-training hears: files of patterns and tables, long ones in pieces, faulty ones left out."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from service.training.datasets.dataset import BadDataset
from service.training.pretraining import clips
from service.training.pretraining.clips import PROGRAMS, read_clips, synthesise
from service.training.pretraining.recipe import PretrainRecipe
from service.training.recordings import Recordings
from tests.training.miniature import write_clip, write_table

speaking = pytest.mark.skipif(any(shutil.which(name) is None for name in PROGRAMS), reason="needs espeak-ng and flite")


def heard(root: Path, **audio: object) -> list[int]:
    """Samples of every clip."""
    recipe = PretrainRecipe.model_validate({"audio": [audio]})
    return [len(read()) for source in read_clips(recipe, [root], Recordings()) for read in source.clips]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, name in enumerate(("zoom in/a.flac", "zoom in/b.flac", "c.flac"), start=1):
        write_clip(tmp_path / name, 300, seconds=number / 10)
    (tmp_path / "faulty.wav").write_bytes(b"RIFF")
    write_table(tmp_path / "lists" / "train.csv", [{"file": "zoom in/b.flac", "class": "x"}, {"file": "c.flac"}])
    (tmp_path / "lists" / "names.txt").write_text("a.flac\n", encoding="utf-8")
    return tmp_path


def test_every_file_that_can_be_read(root: Path) -> None:
    assert sorted(heard(root)) == [1600, 3200, 4800]


def test_patterns_and_tables_choose(root: Path) -> None:
    assert heard(root, files="*.flac") == [4800]
    assert sorted(heard(root, listed="lists/train.csv:file")) == [3200, 4800]
    assert heard(root, listed="lists/names.txt") == [1600]
    assert heard(root, listed="lists/train.csv:file", unlisted="lists/names.txt", files="zoom*/*") == [3200]
    with pytest.raises(BadDataset, match="path"):
        heard(root, listed="lists/train.csv:path")


def test_a_long_recording_is_heard_in_pieces(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "PIECE", 2000)
    assert heard(root, files="c.flac") == [2000, 2000, 800]


@speaking
def test_phrases_are_said(tmp_path: Path) -> None:
    recipe = PretrainRecipe.model_validate({"audio": [], "speech": {"clips": 3, "words": ["two", "six"]}})
    once, again = (read_clips(recipe, [], Recordings())[0].clips for _ in range(2))
    assert len(once) == 3
    assert all(np.array_equal(one(), other()) for one, other in zip(once, again, strict=True))


def test_lacking_synthesisers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(FileNotFoundError, match="espeak-ng and flite"):
        synthesise(["two"], seed=0)
