from pathlib import Path

import pytest

from service.training.comparison import compare
from service.training.folds import fold_recipes, train_folds
from service.training.loop import train
from service.training.recipe import BadRecipe, Recipe, parse_recipe
from service.training.sources import EscSource
from tests.training.miniature import make_esc

TABLES = {
    "name": "esc",
    "task": "classification",
    "method": "linear",
    "data": {"kind": "esc"},
    "input": {"window_frames": 50},
    "optimiser": {"epochs": 1, "batch": 6},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_esc(tmp_path_factory.mktemp("esc"), clips=2, seconds=0.6)


def test_each_fold_is_reported_once(data: Path) -> None:
    recipes = fold_recipes(parse_recipe(TABLES), data)
    sources = [recipe.data for recipe in recipes.values()]
    assert list(recipes) == [1, 2, 3, 4]
    for fold, source in zip(recipes, sources, strict=True):
        assert isinstance(source, EscSource)
        assert source.report_fold == fold
        assert sorted((*source.train_folds, fold)) == [1, 2, 3, 4]
        assert source.selection_fold in source.train_folds
    assert sorted(source.selection_fold for source in sources if isinstance(source, EscSource)) == [1, 2, 3, 4]


def test_folds_are_one_line_with_mean_and_spread(data: Path, tiny_wav2vec2_dir: Path, tmp_path: Path) -> None:
    recipe = parse_recipe(TABLES | {"backbone": str(tiny_wav2vec2_dir)})
    ran: list[Path] = []

    def run(each: Recipe, out: Path) -> None:
        train(each, data, out, device="cpu", dtype="float32", progress=False)
        ran.append(out)

    outcomes = train_folds(recipe, data, tmp_path, run)
    assert [out.name for out in ran] == ["fold-1", "fold-2", "fold-3", "fold-4"]
    (entry,) = compare(outcomes)
    assert entry.values == tuple(outcome.report["accuracy"] for outcome in outcomes)
    assert entry.mean == pytest.approx(sum(entry.values) / 4)
    assert entry.spread is not None
    assert "±" in entry.shown
    again = train_folds(recipe, data, tmp_path, run)
    assert len(ran) == 4
    assert compare(again) == [entry]


def test_other_data_sets_have_no_folds(data: Path) -> None:
    with pytest.raises(BadRecipe, match="'keywords' has no folds"):
        fold_recipes(parse_recipe(TABLES | {"data": {"kind": "keywords"}}), data)
