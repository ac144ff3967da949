import pytest

from service.training.folds import fold_recipes
from service.training.recipe import BadRecipe, parse_recipe
from tests.training.miniature import ESC

TABLES = {
    "name": "esc",
    "task": "classification",
    "method": "linear",
    "data": ESC,
    "input": {"window_frames": 50},
    "optimiser": {"epochs": 1, "batch": 6},
}


def test_each_fold_is_reported_once() -> None:
    recipes = fold_recipes(parse_recipe(TABLES))
    parts = [recipe.data.parts for recipe in recipes.values()]
    assert list(recipes) == ["1", "2", "3", "4"]
    assert [each["report"] for each in parts] == [("1",), ("2",), ("3",), ("4",)]
    assert [each["selection"] for each in parts] == [("4",), ("1",), ("2",), ("3",)]
    assert all(sorted(sum(each.values(), ())) == ["1", "2", "3", "4"] for each in parts)


def test_other_data_sets_have_no_folds() -> None:
    with pytest.raises(BadRecipe, match=r"data\.parts names 0 folds; 3 or more"):
        fold_recipes(parse_recipe(TABLES | {"data": {"kind": "folders"}}))
