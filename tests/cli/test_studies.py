"""`ipet report` and `ipet train --folds` as a shell would call them."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.cli import app
from tests.training.miniature import ESC, make_esc, write_toml


def ipet(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def runs(tiny_wav2vec2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Four folds, and what the command printed."""
    root = tmp_path_factory.mktemp("folds")
    tables = {"name": "events", "task": "classification", "method": "linear", "backbone": str(tiny_wav2vec2_dir)}
    tables |= {"data": ESC, "input": {"window_frames": 50}, "optimiser": {"epochs": 1, "batch": 6}}
    recipe = write_toml(root / "recipe.toml", tables)
    data = make_esc(root / "data", clips=2, seconds=0.6)
    options = ["--data", data, "--out", root / "out", "--device", "cpu", "--dtype", "float32", "--workers", 0]
    return root / "out", ipet("train", recipe, *options, "--folds")


def test_folds_end_in_their_mean(runs: tuple[Path, Result]) -> None:
    _, done = runs
    assert done.exit_code == 0, done.output
    *_, row, one, two, three, four = done.stdout.strip().splitlines()
    assert "±" in row
    assert [line.partition(":")[0] for line in (one, two, three, four)] == [f"fold-{n}" for n in (1, 2, 3, 4)]


def test_report_is_markdown_or_json(runs: tuple[Path, Result]) -> None:
    out, _ = runs
    table = ipet("report", out)
    assert table.exit_code == 0, table.output
    header, _, row = table.stdout.strip().splitlines()
    assert header.startswith("| task | figure | backbone | method | trainable | value |")
    assert row.startswith("| events | accuracy | ")
    (entry,) = json.loads(ipet("report", out / "fold-1", out / "fold-2", "--json").stdout)
    assert len(entry["values"]) == 2
    assert entry["mean"] == pytest.approx(sum(entry["values"]) / 2)
    assert entry["spread"] == pytest.approx(abs(entry["values"][0] - entry["values"][1]) / 2**0.5)
    accuracies = [json.loads((out / f"fold-{n}" / "figures.json").read_text())["report"]["accuracy"] for n in (1, 2)]
    assert entry["values"] == accuracies
    assert entry["runs"] == ["fold-1", "fold-2"]


def test_runs_of_other_clips_are_lines_of_their_own(runs: tuple[Path, Result], tmp_path: Path) -> None:
    shutil.copytree(runs[0] / "fold-1", tmp_path / "fold-1")
    figures = tmp_path / "fold-1" / "figures.json"
    told = json.loads(figures.read_text())
    assert told["data"] == json.loads((runs[0] / "fold-2" / "figures.json").read_text())["data"]
    figures.write_text(json.dumps(told | {"data": "another set's"}))
    assert len(ipet("report", runs[0] / "fold-2", tmp_path).stdout.strip().splitlines()) == 2 + 2


def test_report_wants_runs(tmp_path: Path) -> None:
    done = ipet("report", tmp_path)
    assert done.exit_code == 1
    assert "holds no run" in done.stderr
