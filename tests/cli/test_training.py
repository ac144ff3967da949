"""`ipet train` and `ipet norm-stats` as a shell would call them."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.cli import app
from service.training.shipped import recipe_keys
from tests.training.miniature import KEYWORDS, make_keywords, write_toml


def ipet(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def recipe(path: Path, backbone: Path) -> Path:
    tables = {"name": "kw", "task": "classification", "backbone": str(backbone), "data": KEYWORDS}
    return write_toml(path, {**tables, "input": {"window_frames": 50}, "optimiser": {"epochs": 1, "batch": 6}})


def test_recipes_are_listed() -> None:
    done = ipet("train", "--recipe-list")
    assert done.exit_code == 0, done.output
    header, *rows = done.stdout.splitlines()
    assert header.split()[:3] == ["recipe", "backbone", "data"]
    row = next(row for row in rows if row.startswith("voxceleb1-wav2vec2"))
    assert row.split()[1:9] == ["wav2vec2-base", "folders", "64", "300", "64", "128", "0.001", "2.5e-05"]


def test_trains_by_a_method(tiny_wav2vec2_dir: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path / "recipe.toml", tiny_wav2vec2_dir)
    data = make_keywords(tmp_path / "data", speakers=3, takes=1)
    options = ["--data", data, "--out", tmp_path / "out", "--dtype", "float32", "--workers", 1, "--no-report"]
    done = ipet("train", path, *options, "--method", "linear", "--cache", tmp_path / "cache")
    assert done.exit_code == 0, done.output
    assert "linear: " in done.stdout
    assert '"prompt_length": 0' in (tmp_path / "out" / "adapter_config.json").read_text()
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 9


def test_every_key_of_a_recipe_is_told() -> None:
    done = ipet("train", "--keys")
    assert done.exit_code == 0, done.output
    header, *rows = done.stdout.splitlines()
    assert header.split() == ["key", "default", "meaning"]
    told = {row.split()[0]: row for row in rows}
    assert {"name", "data.tables.file", "adapter.lora.r", "optimiser.lr", "augment.noise_snr"} <= set(told)
    assert "0.001" in told["optimiser.lr"]
    assert "Of: paper, cosine." in told["optimiser.schedule"]
    assert all(meaning for _, _, meaning in recipe_keys()), [key for key, _, meaning in recipe_keys() if not meaning]


def test_a_run_ends_in_its_figures_and_is_not_run_again(tiny_wav2vec2_dir: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path / "recipe.toml", tiny_wav2vec2_dir)
    data, out = make_keywords(tmp_path / "data", speakers=3, takes=1), tmp_path / "out"
    options = ["--data", data, "--out", out, "--dtype", "float32", "--set", "optimiser.epochs=2", "--seed", 5]
    done = ipet("train", path, *options)
    assert done.exit_code == 0, done.output
    assert [line.split(" loss ")[0] for line in done.stdout.splitlines() if line.startswith("train epoch")] == [
        "train epoch 1/2",
        "train epoch 2/2",
    ]
    assert "report.accuracy" in done.stdout
    assert "Of fewer than 30 clips, so rough: selection (3), report (6)." in done.stdout
    lines = [json.loads(line) for line in (out / "epochs.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["stage"]) for line in lines] == [(1, "train"), (2, "train")]
    assert all(line["loss"] > 0 and line["figure"] is not None and line["rate"] > 0 for line in lines)
    assert '"seed": 5' in (out / "adapter_config.json").read_text()
    before = (out / "adapter_model.safetensors").stat().st_mtime_ns
    again = ipet("train", path, *options)
    assert "was finished before; --fresh trains it anew" in again.stdout
    assert "report.accuracy" in again.stdout
    assert (out / "adapter_model.safetensors").stat().st_mtime_ns == before
    other = ipet("train", path, *options, "--seed", 6)
    assert other.exit_code == 1
    assert "holds a finished run of another recipe" in other.stderr
    assert ipet("train", path, *options, "--seed", 6, "--fresh", "--no-report").exit_code == 0
    card = (out / "README.md").read_text()
    assert "The report part was not read." in card
    assert "shares no speaker with the training part" in card


def test_an_unknown_dtype_is_one_line(tiny_wav2vec2_dir: Path, tmp_path: Path) -> None:
    path, data = recipe(tmp_path / "recipe.toml", tiny_wav2vec2_dir), make_keywords(tmp_path / "data", takes=1)
    done = ipet("train", path, "--data", data, "--out", tmp_path / "out", "--dtype", "flot")
    assert (done.exit_code, done.stderr.strip().count("\n")) == (1, 0)
    assert "dtype 'flot' is not known; use auto, float32" in done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("optimiser.lr", "expected key=value"),
        ("optimiser.rate=1", "optimiser.rate: unknown key"),
        ("optimiser.lr=fast", "optimiser.lr: .*got 'fast'"),
        ("=3", ": unknown key"),
        ("adapter=3", "adapter: .*got 3"),
        ("methods=3", "methods: expected tables"),
        ("optimiser.lr='3", 'optimiser.lr: .*got "\'3"'),
    ],
)
def test_changes_are_checked(tiny_wav2vec2_dir: Path, tmp_path: Path, change: str, said: str) -> None:
    path = recipe(tmp_path / "recipe.toml", tiny_wav2vec2_dir)
    done = ipet("train", path, "--data", tmp_path, "--out", tmp_path / "out", "--set", change, "--method", "lora")
    assert done.exit_code == 1
    assert re.search(said, done.stderr)


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
