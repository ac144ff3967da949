"""Recipes that ship, by name: where they lie, in a checkout or installed, and what a list of them shows."""

import sysconfig
from pathlib import Path

from service.training.recipe import BadRecipe, Recipe, read_recipe

CHECKOUT = Path(__file__).parents[2] / "adapters" / "recipes"
FOLDER = CHECKOUT if CHECKOUT.is_dir() else Path(sysconfig.get_path("data"), "share", "ipet-serve", "recipes")
COLUMNS = (
    "recipe",
    "backbone",
    "data",
    "batch",
    "frames",
    "prompts",
    "bottleneck",
    "lr",
    "lr (full)",
    "epochs",
    "mixup",
    "loss",
)


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


def recipe_rows() -> list[tuple[str, ...]]:
    """A line for each shipped recipe, in the order of COLUMNS."""
    return [_row(read_recipe(path), read_recipe(path, "full")) for path in shipped_recipes().values()]


def recipe_table() -> str:
    """All shipped recipes in columns."""
    rows = [COLUMNS, *recipe_rows()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)


def _row(recipe: Recipe, full: Recipe) -> tuple[str, ...]:
    options, differs = recipe.optimiser, full.optimiser.lr != recipe.optimiser.lr
    return (
        recipe.name,
        recipe.backbone.rpartition("/")[2],
        recipe.data.kind,
        str(options.batch),
        str(recipe.input.window_frames),
        str(recipe.adapter.prompt_length),
        str(recipe.adapter.bottleneck_dim),
        f"{options.lr:g}",
        f"{full.optimiser.lr:g}" if differs else "",
        str(options.epochs),
        f"{recipe.augment.mixup:g}",
        recipe.loss.kind,
    )
