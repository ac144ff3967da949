"""`ipet train` and `ipet norm-stats` as a shell would call them."""

from pathlib import Path

from typer.testing import CliRunner, Result

from service.cli import app
from tests.training.miniature import make_keywords


def ipet(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def recipe(path: Path, backbone: Path) -> Path:
    path.write_text(
        f'name = "kw"\ntask = "classification"\nbackbone = "{backbone}"\n[data]\nkind = "keywords"\n'
        "selection_speakers = 1\n[input]\nwindow_frames = 50\n[optimiser]\nepochs = 1\nbatch = 6\n"
    )
    return path


def test_recipes_are_listed() -> None:
    done = ipet("train", "--recipe-list")
    assert done.exit_code == 0, done.output
    header, *rows = done.stdout.splitlines()
    assert header.split()[:3] == ["recipe", "backbone", "data"]
    row = next(row for row in rows if row.startswith("voxceleb1-wav2vec2"))
    assert row.split()[1:9] == ["wav2vec2-base", "voxceleb", "64", "300", "64", "128", "0.001", "2.5e-05"]


def test_trains_by_a_method(tiny_wav2vec2_dir: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path / "recipe.toml", tiny_wav2vec2_dir)
    data = make_keywords(tmp_path / "data", speakers=3, takes=1)
    options = ["--data", data, "--out", tmp_path / "out", "--dtype", "float32", "--workers", 1, "--no-report"]
    done = ipet("train", path, *options, "--method", "linear", "--cache", tmp_path / "cache")
    assert done.exit_code == 0, done.output
    assert "linear: " in done.stdout
    assert '"prompt_length": 0' in (tmp_path / "out" / "adapter_config.json").read_text()
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 9


def test_unknown_recipes_and_methods_are_one_line(tiny_wav2vec2_dir: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path / "recipe.toml", tiny_wav2vec2_dir)
    for words, said in ((["esc51-ast"], "no recipe of that name"), ([path, "--method", "lorra"], "method 'lorra'")):
        done = ipet("train", *words, "--data", tmp_path, "--out", tmp_path / "out")
        assert done.exit_code == 1
        assert said in done.stderr
        assert done.stderr.count("\n") == 1


def test_norm_stats_are_what_a_recipe_takes(tiny_wav2vec2_dir: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path / "recipe.toml", tiny_wav2vec2_dir)
    done = ipet("norm-stats", path, "--data", make_keywords(tmp_path / "data", speakers=3, takes=1))
    assert done.exit_code == 0, done.output
    mean, std = done.stdout.splitlines()
    assert mean.startswith("mean = -")
    assert std.startswith("std = ")
