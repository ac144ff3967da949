"""Recipes that ship, by name: where they lie, in a checkout or installed, what a list of them shows; and all keys."""

import json
import sysconfig
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import get_args

from pydantic import BaseModel

from service.training.recipe import BadRecipe, Recipe, read_recipe
from service.training.tables import aligned

CHECKOUT = Path(__file__).parents[2] / "adapters" / "recipes"
FOLDER = CHECKOUT if CHECKOUT.is_dir() else Path(sysconfig.get_path("data"), "share", "ipet-serve", "recipes")
FULL = "lr (full)"  # where it is another one
COLUMNS = {  # what a list shows: a name, and where it stands in a recipe
    "recipe": "name",
    "backbone": "backbone",
    "data": "data.kind",
    "batch": "optimiser.batch",
    "frames": "input.window_frames",
    "prompts": "adapter.prompt_length",
    "bottleneck": "adapter.bottleneck_dim",
    "lr": "optimiser.lr",
    FULL: "optimiser.lr",
    "epochs": "optimiser.epochs",
    "mixup": "augment.mixup",
    "loss": "loss.kind",
}


def shipped_recipes() -> dict[str, Path]:
    """Paths of all training recipes by name, the embedded backbone's first."""
    found = [*sorted(FOLDER.glob("*.toml")), *sorted(FOLDER.glob("*/*.toml"))]
    return {path.stem: path for path in found if not path.stem.startswith("pretrain")}


def find_recipe(name: str) -> Path:
    """The path of a recipe that is given as a path or by the name of one that ships. Raises BadRecipe."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if name in shipped:
        return shipped[name]
    raise BadRecipe(f"there is no file {name} and no recipe of that name; by name there are {', '.join(shipped)}")


def recipe_rows() -> list[dict[str, str]]:
    """What is shown of each shipped recipe, by column."""
    rows = []
    for path in shipped_recipes().values():
        recipe, full = read_recipe(path), read_recipe(path, "full")
        row = {column: str(attrgetter(place)(recipe)).rpartition("/")[2] for column, place in COLUMNS.items()}
        differs = full.optimiser.lr != recipe.optimiser.lr
        rows.append(row | {FULL: str(full.optimiser.lr) if differs else ""})
    return rows


def recipe_table() -> str:
    """All shipped recipes in columns."""
    return aligned([tuple(COLUMNS), *(tuple(row.values()) for row in recipe_rows())])


def recipe_keys(section: type[BaseModel] = Recipe, prefix: str = "") -> list[tuple[str, str, str]]:
    """Every key of a recipe, its default and its meaning, in the order of the recipe's own description."""
    rows: list[tuple[str, str, str]] = []
    for name, field in section.model_fields.items():
        kinds = list(_kinds(field.annotation))
        inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if inner is None:
            default = "" if field.is_required() else json.dumps(field.get_default(call_default_factory=True))
            choices = ", ".join(dict.fromkeys(kind for kind in kinds if isinstance(kind, str)))
            meaning = f"{field.description or ''} Of: {choices}." if choices else field.description or ""
            rows.append((f"{prefix}{name}", default, meaning))
        else:
            rows += recipe_keys(inner, f"{prefix}{name}.")
    return rows


def _kinds(annotation: object) -> Iterator[object]:
    """An annotation and all that stand within it, values of literals too."""
    yield annotation
    for each in get_args(annotation):
        yield from _kinds(each)
