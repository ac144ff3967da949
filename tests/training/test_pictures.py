"""Pictures: real PNGs, small, and the card goes without them where there is nothing to draw with."""

import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from service.training.answers import TrialAnswers
from service.training.checkpoint import EpochFigures, Progress
from service.training.figures import Measured
from service.training.outcome import leave_pictures
from service.training.pictures import draw_confusion, draw_det, draw_training

pytest.importorskip("matplotlib")
MAX_BYTES = 60_000
EPOCHS = [EpochFigures(epoch, 3.0 / epoch, 1 - 1 / (epoch + 1)) for epoch in range(1, 41)]


def check(path: Path) -> tuple[int, int]:
    """Width and height of a PNG that is small enough and not of one colour."""
    written = path.read_bytes()
    assert written[:8] == b"\x89PNG\r\n\x1a\n"
    assert 2_000 < len(written) < MAX_BYTES
    width, height = struct.unpack(">II", written[16:24])
    return width, height


def test_training(tmp_path: Path) -> None:
    draw_training(tmp_path / "a.png", EPOCHS, "accuracy", 12)
    assert check(tmp_path / "a.png") == (540, 324)
    draw_training(tmp_path / "b.png", EPOCHS, "accuracy", 12)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("classes", [2, 60, 200])
def test_confusion(tmp_path: Path, classes: int) -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 3, (classes, classes)) + 30 * np.eye(classes, dtype=int)
    draw_confusion(tmp_path / "c.png", counts, [f"a rather long label {n}" for n in range(classes)])
    width, height = check(tmp_path / "c.png")
    assert width == height


def test_det(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    targets = np.arange(4000) < 2000
    lists = [
        TrialAnswers(name, rng.normal(level * targets, 1), targets, np.zeros((4000, 2), np.int64), 0)
        for name, level in (("clean", 3.0), ("hard", 2.0), ("noise15db", 1.5), ("apart", 50.0))
    ]
    draw_det(tmp_path / "d.png", lists)
    check(tmp_path / "d.png")


def test_nothing_to_draw_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert leave_pictures(tmp_path, Progress("run", epochs=EPOCHS), "accuracy", Measured({})) == ("training.png",)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert leave_pictures(tmp_path, Progress("run", epochs=EPOCHS), "accuracy", Measured({})) is None
