"""Recipes for miniature runs, on backbones with random weights."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

WriteRecipe = Callable[..., Path]


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """Steps this small are faster on one thread, by far so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def write_recipe(tmp_path: Path) -> WriteRecipe:
    """Write a recipe of nested tables to a TOML file of flat values."""

    def write(**tables: Any) -> Path:
        path = tmp_path / "recipe.toml"
        top = {key: value for key, value in tables.items() if not isinstance(value, dict)}
        lines = [f"{key} = {_toml(value)}" for key, value in top.items()]
        for name, table in tables.items():
            if isinstance(table, dict):
                lines += [f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_toml(each) for each in value)}]"
    return str(value)
