import functools
from pathlib import Path
from typing import Any

import pytest

from service.model.spec import TaskType
from service.training.recipe import BadRecipe, parse_recipe, read_recipe
from service.training.shipped import recipe_keys
from service.training.sources import Table
from tests.training.miniature import write_toml

GOOD: dict[str, Any] = {
    "name": "kw",
    "task": "classification",
    "data": {"kind": "csv"},
    "input": {"window_frames": 128},
}


def test_defaults_are_the_papers() -> None:
    recipe = parse_recipe(GOOD)
    assert recipe.optimiser.betas == (0.95, 0.999)
    assert recipe.optimiser.weight_decay == 5e-7
    assert (recipe.adapter.dropout, recipe.adapter.scale) == (0.1, 0.1)
    assert recipe.backbone == "embedded"
    assert recipe.task_type is TaskType.CLASSIFICATION


def test_activation_follows_the_loss() -> None:
    assert parse_recipe(GOOD).activation == "softmax"
    assert parse_recipe({**GOOD, "loss": {"kind": "binary_cross_entropy"}}).activation == "sigmoid"


def test_all_windows_have_a_word() -> None:
    assert parse_recipe({**GOOD, "input": {"window_frames": 128, "windows": "all"}}).input.windows is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"colour": 1}, "colour: unknown key"),
        ({"optimiser": {"learning_rate": 1}}, "optimiser.learning_rate: unknown key"),
        ({"data": {"kind": "csv", "speakers": 1}}, "data.speakers: unknown key"),
        ({"data": {"kind": "tapes"}}, "data.kind: .*got 'tapes'"),
        ({"input": {}}, "input.window_frames: missing"),
        ({"optimiser": {"lr": -1}}, "optimiser.lr: .*got -1"),
        ({"name": "Not A Name"}, "name: .*Not A Name"),
        ({"task": "verification"}, r"data\.trials names lists for verification"),
        ({"loss": {"kind": "am_softmax"}}, "does not go with classification"),
        ({"data": {"kind": "csv", "parts": {"train": ["1", "2"], "report": ["2"]}}}, "'2' stands in two parts"),
        ({"data": {"kind": "csv", "pattern": "(?P<speaker"}}, "is no regular expression"),
        ({"data": {"kind": "folders", "pattern": ".*"}}, r"has no group \(\?P<label>"),
        ({"folds": 1}, "folds: expected 2 or more"),
        ({"adapter": {"prompt_length": 129}}, "adapter.prompt_length"),
    ],
)
def test_refuses(change: dict[str, Any], named: str) -> None:
    with pytest.raises(BadRecipe, match=named):
        parse_recipe({**GOOD, **change})


@pytest.mark.parametrize(("content", "said"), [(b"name = ", "is not TOML"), (b"\xff\xfe", "is not TOML")])
def test_refuses_files(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    with pytest.raises(BadRecipe, match=said):
        read_recipe(path)


def test_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match=r"nothing\.toml cannot be read"):
        read_recipe(tmp_path / "nothing.toml")


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ("optimiser.patience=null", ("optimiser", "patience"), None),
        ("data.tables.path=meta.csv", ("data", "tables"), (Table(path="meta.csv"),)),
        ("methods.lora.seed=3", ("seed",), 3),
        ("adapter.lora.r=4", ("adapter", "lora", "r"), 4),
        ("optimiser.schedule=cosine", ("optimiser", "schedule"), "cosine"),
    ],
)
def test_what_keys_tells_can_be_set(tmp_path: Path, change: str, key: tuple[str, ...], value: object) -> None:
    path = write_toml(tmp_path / "recipe.toml", {**GOOD, "optimiser": {"patience": 3}})
    recipe = read_recipe(path, "lora", [change])
    assert functools.reduce(getattr, key, recipe) == value
    assert ".".join(key) in {told.removeprefix("methods.lora.") for told, _, _ in recipe_keys()} | {"data.tables"}


def test_reads_toml(tmp_path: Path) -> None:
    recipe = read_recipe(write_toml(tmp_path / "recipe.toml", {**GOOD, "augment": {"noise_snr": [0, 20]}}))
    assert recipe.augment.noise_snr == (0.0, 20.0)
