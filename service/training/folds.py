"""`ipet train --folds`: every fold is the report part of a run of its own; the figures are those of all runs."""

from service.training.recipe import BadRecipe, Recipe

FEWEST_FOLDS = 3  # one to report, one to select on, one to train on


def fold_recipes(recipe: Recipe) -> dict[str, Recipe]:
    """The recipe once for every fold that `data.parts` names, by the fold that is its report part.

    Epochs are chosen on the fold before it (before the first the last), the others are trained on. Raises BadRecipe.
    """
    folds = recipe.data.folds
    if len(folds) < FEWEST_FOLDS:
        raise BadRecipe(f"recipe {recipe.name}: data.parts names {len(folds)} folds; {FEWEST_FOLDS} or more are needed")
    recipes = {}
    for position, fold in enumerate(folds):
        selection = folds[position - 1]
        train = tuple(other for other in folds if other not in (fold, selection))
        parts = {"train": train, "selection": (selection,), "report": (fold,)}
        recipes[fold] = recipe.model_copy(update={"data": recipe.data.model_copy(update={"parts": parts})})
    return recipes
