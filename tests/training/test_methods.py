from typing import Any

import pytest

from service.training.methods import METHODS, merge
from service.training.recipe import BadRecipe, Recipe, parse_recipe

GOOD: dict[str, Any] = {
    "name": "kw",
    "task": "classification",
    "data": {"kind": "csv"},
    "input": {"window_frames": 128},
    "adapter": {"prompt_length": 4, "bottleneck_dim": 32},
    "optimiser": {"lr": 1e-3, "batch": 8},
    "methods": {"full": {"optimiser": {"lr": 1e-5}}, "input-prompt": {"adapter": {"input_prompt": 5}}},
}


def sizes(recipe: Recipe) -> tuple[int, int, int]:
    adapter = recipe.adapter
    return adapter.prompt_length, adapter.bottleneck_dim, adapter.input_prompt


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("ipet", (4, 32, 0)),
        ("prompt", (4, 0, 0)),
        ("adapter", (0, 32, 0)),
        ("input-prompt", (0, 0, 5)),
        ("linear", (0, 0, 0)),
        ("full", (0, 0, 0)),
        ("lora", (0, 0, 0)),
        ("prefix", (0, 0, 0)),
    ],
)
def test_a_method_keeps_the_sizes_that_it_trains(method: str, expected: tuple[int, int]) -> None:
    recipe = parse_recipe(GOOD, method=method)
    assert recipe.method == method
    assert sizes(recipe) == expected
    assert parse_recipe({**GOOD, "method": method}) == recipe
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe  # as a bundle keeps it


def test_overrides_are_laid_over_the_recipe() -> None:
    assert parse_recipe(GOOD).optimiser.lr == 1e-3
    full = parse_recipe(GOOD, method="full").optimiser
    assert (full.lr, full.batch) == (1e-5, 8)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_that_is_set_is_the_method_that_is_chosen(method: str) -> None:
    table = {**GOOD, "adapter": {"input_prompt": 5}}
    assert parse_recipe(table, changes={"method": method}) == parse_recipe(table, method=method)


def test_what_is_set_wins_over_what_a_method_differs_in() -> None:
    assert parse_recipe(GOOD, method="full", changes={"optimiser": {"lr": 0.5}}).optimiser.lr == 0.5
    changes = {"methods": {"full": {"optimiser": {"batch": 4}}}}
    assert parse_recipe(GOOD, method="full", changes=changes).optimiser.batch == 4
    assert parse_recipe(GOOD, changes=changes).optimiser.batch == 8
    with pytest.raises(BadRecipe, match=r"adapter\.prompt_length: method 'linear' does not train it"):
        parse_recipe(GOOD, method="linear", changes={"adapter": {"prompt_length": 3}})


def test_merge_leaves_its_arguments_alone() -> None:
    below = {"a": {"b": 1, "c": 2}, "d": 3}
    assert merge(below, {"a": {"b": 9}, "e": 4}) == {"a": {"b": 9, "c": 2}, "d": 3, "e": 4}
    assert below == {"a": {"b": 1, "c": 2}, "d": 3}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": "vera"}, "method 'vera' is not known; use ipet, prompt"),
        ({"methods": {"vera": {}}}, "method 'vera' is not known"),
        ({"methods": {"full": {"optimiser": {"rate": 1}}}}, "optimiser.rate: unknown key"),
        ({"methods": {"full": 3}}, r"tables \[methods.<method>\]"),
        ({"method": "prompt", "adapter": {"prompt_length": 0}}, r"needs adapter\.prompt_length above 0"),
        ({"method": "input-prompt", "methods": {}}, r"needs adapter\.input_prompt above 0"),
        ({"method": "adapter", "adapter": {"bottleneck_dim": 0}}, r"needs adapter\.bottleneck_dim above 0"),
    ],
)
def test_refuses(change: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRecipe, match=said):
        parse_recipe({**GOOD, **change})


def test_every_method_has_a_word() -> None:
    papers = ("ipet", "prompt", "adapter", "input-prompt", "linear", "full")
    assert (*papers, "lora", "dora", "prefix", "ia3", "bitfit") == METHODS


def test_families_have_their_usual_sizes_and_the_recipes_own() -> None:
    lora = parse_recipe(GOOD, method="lora").adapter.lora
    assert lora is not None
    assert (lora.r, lora.alpha, lora.targets, lora.dora) == (8, 16.0, ["q", "v"], False)
    dora = parse_recipe(GOOD, method="dora").adapter.lora
    assert dora is not None
    assert dora.dora
    own = {**GOOD, "methods": {"prefix": {"adapter": {"prefix_length": 3}}}}
    assert parse_recipe(own, method="prefix").adapter.prefix_length == 3
    assert parse_recipe(GOOD, method="bitfit").adapter.bias == ["q", "k", "v", "o", "fc1", "fc2"]
    with pytest.raises(BadRecipe, match=r"lora\.targets: missing"):
        parse_recipe({**GOOD, "adapter": {"lora": {"r": 2, "alpha": 4}}})
