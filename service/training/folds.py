"""`ipet train --folds`: every fold of ESC is the report part of a run of its own; the figures are those of all runs."""

from collections.abc import Callable
from pathlib import Path

from service.training.datasets.dataset import read_table
from service.training.datasets.esc import TABLE
from service.training.outcome import Outcome, finished, read_outcome
from service.training.recipe import BadRecipe, Recipe
from service.training.sources import EscSource

FEWEST_FOLDS = 3  # one to report, one to select on, one to train on


def fold_recipes(recipe: Recipe, data: Path) -> dict[int, Recipe]:
    """The recipe once for every fold that the data set has, by the fold that is its report part.

    Epochs are chosen on the fold before it (before the first the last), the others are trained on.

    Raises:
        BadRecipe: its data set has no folds, or too few.
        BadDataset: the table cannot be read.
    """
    if not isinstance(recipe.data, EscSource):
        raise BadRecipe(f"recipe {recipe.name}: data.kind {recipe.data.kind!r} has no folds; `esc` has")
    folds = sorted({int(row["fold"]) for row in read_table(data / TABLE, ("fold",))})
    if len(folds) < FEWEST_FOLDS:
        raise BadRecipe(f"{data / TABLE}: {FEWEST_FOLDS} folds or more are needed, got {len(folds)}")
    recipes = {}
    for position, fold in enumerate(folds):
        train = tuple(other for other in folds if other != fold)
        source = EscSource(kind="esc", train_folds=train, selection_fold=folds[position - 1], report_fold=fold)
        recipes[fold] = recipe.model_copy(update={"data": source})
    return recipes


def train_folds(recipe: Recipe, data: Path, out: Path, run: Callable[[Recipe, Path], object]) -> list[Outcome]:
    """Run each fold into `out/fold-<n>`, by `run(recipe, out)`; what is finished there is not run again."""
    outcomes = []
    for fold, each in fold_recipes(recipe, data).items():
        place = out / f"fold-{fold}"
        outcome = finished(place, each)
        if outcome is None:
            run(each, place)
            outcome = read_outcome(place)
        outcomes.append(outcome)
    return outcomes
