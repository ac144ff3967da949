"""`ipet report`, `ipet reproduce` and `ipet train --folds` as a shell would call them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.cli import app
from tests.training.miniature import make_esc


def ipet(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def runs(tiny_wav2vec2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Four folds, and what the command printed."""
    root = tmp_path_factory.mktemp("folds")
    recipe = root / "recipe.toml"
    recipe.write_text(
        f'name = "events"\ntask = "classification"\nmethod = "linear"\nbackbone = "{tiny_wav2vec2_dir}"\n'
        '[data]\nkind = "esc"\n[input]\nwindow_frames = 50\n[optimiser]\nepochs = 1\nbatch = 6\n'
    )
    data = make_esc(root / "data", clips=2, seconds=0.6)
    options = ["--data", data, "--out", root / "out", "--device", "cpu", "--dtype", "float32", "--workers", 0]
    return root / "out", ipet("train", recipe, *options, "--folds")


def test_folds_end_in_their_mean(runs: tuple[Path, Result]) -> None:
    _, done = runs
    assert done.exit_code == 0, done.output
    *_, row, one, two, three, four = done.stdout.strip().splitlines()
    assert "±" in row
    assert [line.partition(":")[0] for line in (one, two, three, four)] == [f"fold-{n}" for n in (1, 2, 3, 4)]


def test_report_is_markdown_json_and_a_picture(runs: tuple[Path, Result], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out, _ = runs
    table = ipet("report", out, "--out", tmp_path / "runs.png")
    assert table.exit_code == 0, table.output
    header, _, row = table.stdout.strip().splitlines()
    assert header.startswith("| task | figure | backbone | method | trainable | value |")
    assert row.startswith("| events | accuracy | ")
    assert (tmp_path / "runs.png").read_bytes()[:4] == b"\x89PNG"
    (entry,) = json.loads(ipet("report", out / "fold-1", out / "fold-2", "--json").stdout)
    assert len(entry["values"]) == 2
    assert entry["mean"] == pytest.approx(sum(entry["values"]) / 2)
    assert entry["runs"] == ["fold-1", "fold-2"]


def test_report_wants_runs(tmp_path: Path) -> None:
    done = ipet("report", tmp_path)
    assert done.exit_code == 1
    assert "holds no run" in done.stderr


def test_reproduce_says_what_is_missing(tmp_path: Path) -> None:
    for folder in ("gtzan", "ESC-50-master"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    nowhere = tmp_path / "nowhere"
    options = ["--data", tmp_path / "data", "--out", tmp_path / "out", "--method", "ipet", "--method", "full"]
    done = ipet("reproduce", "--paper", *options, "--ast", nowhere, "--wav2vec2", nowhere)
    assert done.exit_code == 0, done.output
    page = (tmp_path / "out" / "COMPARISON.md").read_text()
    assert page.count("no weights: ") == 8
    assert "- esc50, AST, full, seed 1 fold 1: " in page
    assert page.count("no data: there is no folder FSD50K") == 4
    assert str(tmp_path) not in page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--small or --paper"),
        (["--small", "--paper"], "--small or --paper"),
        (["--small", "--method", "lora"], "--method 'lora' is not known; use ipet, "),
        (["--small", "--task", "gtzan"], "--task 'gtzan' is not known; use sound-events, "),
    ],
)
def test_reproduce_refuses(words: list[str], said: str, tmp_path: Path) -> None:
    done = ipet("reproduce", *words, "--data", tmp_path, "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert said in done.stderr
