from pathlib import Path

import pytest
import torch

from service.audio.features import InputSpec
from service.model.backbone import Backbone
from service.model.bank import Bank
from service.model.parts.input_prompt import InputPrompt
from service.training.batches import Batches, Pick
from service.training.datasets.load import load_dataset
from service.training.export import adapter_spec
from service.training.fit import Fit, TrainingDiverged, learning_rate
from service.training.methods import of_method
from service.training.recipe import Optimiser, Recipe, parse_recipe
from service.training.recordings import Recordings
from tests.training.miniature import KEYWORDS, make_keywords


def make_fit(backbone: Backbone, root: Path, **tables: object) -> Fit:
    recipe: Recipe = parse_recipe(
        {
            "name": "kw",
            "task": "classification",
            "data": KEYWORDS,
            "input": {"window_frames": 50, "mean": -7.0, "std": 4.0},
            "optimiser": {"epochs": 2, "batch": 4, "lr": 1e-2},
            **tables,
        }
    )
    dataset = load_dataset(make_keywords(root, speakers=2, takes=2), recipe.data)
    spec = adapter_spec(recipe, len(dataset.labels))
    size, features = recipe.optimiser.batch, backbone.features
    batches = Batches(dataset.train, Recordings(), recipe.augment, (), _input(recipe), features, size, recipe.seed)
    return Fit(backbone, spec, recipe, batches, len(dataset.labels))


def _input(recipe: Recipe) -> InputSpec:
    return InputSpec(50, mean=recipe.input.mean or 0.0, std=recipe.input.std or 0.5)


def test_schedule_of_the_paper() -> None:
    options = Optimiser(lr=1.0, epochs=40)
    assert [learning_rate(options, epoch) for epoch in (1, 5, 5.9)] == [1.0, 1.0, 1.0]
    assert learning_rate(options, 6) == pytest.approx(0.85)
    assert learning_rate(options, 26) == learning_rate(options, 40) == pytest.approx(0.85**21)


def test_cosine_schedule_ends_at_nothing() -> None:
    options = Optimiser(lr=2.0, epochs=10, schedule="cosine")
    assert learning_rate(options, 1) == 2.0
    assert learning_rate(options, 6) == pytest.approx(1.0)
    warming = options.model_copy(update={"warm_up": 1.0})
    assert learning_rate(warming, 1, step=0.25) == 0.25 * 2.0  # the first of four steps learns too
    assert learning_rate(options, 11) == pytest.approx(0.0)


PARTS = {"layer_aggregation": True}


OTHERS = {
    "lora": {"r": 2, "alpha": 4, "targets": ["q", "fc1"], "dora": True},
    "ia3": {"output": ["k"], "input": ["fc2"]},
    "bias": ["v", "o"],
    "prefix_length": 3,
}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("tiny_ast", {}),
        ("tiny_wav2vec2", {}),
        ("tiny_ast", {**PARTS, "input_prompt": 5}),
        ("tiny_wav2vec2", PARTS),
        ("tiny_ast", OTHERS),
        ("tiny_wav2vec2", OTHERS),
    ],
    ids=["ast", "wav2vec2", "ast-version-2", "wav2vec2-version-2", "ast-families", "wav2vec2-families"],
)
def test_training_computes_what_the_server_computes(
    name: str, parts: dict[str, object], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    backbone: Backbone = request.getfixturevalue(name)
    fit = make_fit(backbone, tmp_path, adapter={"dropout": 0.0, **parts})
    fit.run_epoch(1)
    inputs = torch.randn(3, *backbone.input_shape(50))
    with torch.no_grad():
        trained = fit.outputs(inputs if fit.adapter.spec.find(InputPrompt) else backbone.embed(inputs))
        bank = Bank.of(backbone, [fit.snapshot().weights])
        served = backbone.answer(inputs, bank, [1] * 3)
    torch.testing.assert_close(trained, served, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("views", [0, 2])
def test_every_part_of_version_2_learns(tiny_ast: Backbone, tmp_path: Path, views: int) -> None:
    adapter = {"prompt_length": 0, "bottleneck_dim": 8, **PARTS, "input_prompt": 5}
    optimiser = {"epochs": 8, "batch": 4, "lr": 1e-2, "weight_decay": 0.0}  # which moves what has no gradient, too
    fit = make_fit(tiny_ast, tmp_path, adapter=adapter, augment={"views": views}, optimiser=optimiser)
    start = fit.snapshot().to_tensors()
    losses = [fit.run_epoch(epoch) for epoch in range(1, 9)]
    assert losses[-1] < losses[0]
    end = fit.snapshot().to_tensors()
    assert not [name for name, tensor in end.items() if torch.equal(tensor, start[name])]


@pytest.mark.parametrize("method", ["lora", "dora", "prefix", "ia3", "bitfit"])
def test_every_family_learns(method: str, tiny_wav2vec2: Backbone, tmp_path: Path) -> None:
    optimiser = {"epochs": 6, "batch": 4, "lr": 2e-2, "weight_decay": 0.0}
    table = of_method({"adapter": {"dropout": 0.0}, "optimiser": optimiser}, method, {})
    fit = make_fit(tiny_wav2vec2, tmp_path, **table)
    start = fit.snapshot().to_tensors()
    losses = [fit.run_epoch(epoch) for epoch in range(1, 7)]
    assert losses[-1] < 0.8 * losses[0]
    still = [name for name, tensor in fit.snapshot().to_tensors().items() if torch.equal(tensor, start[name])]
    assert not [name for name in still if not name.endswith(("bias.k", "ia3.k"))]  # which a softmax hardly sees


def test_loss_falls_and_only_the_adapter_moves(tiny_wav2vec2: Backbone, tmp_path: Path) -> None:
    fit = make_fit(tiny_wav2vec2, tmp_path)
    inputs = torch.randn(1, 8000)
    before = tiny_wav2vec2.embed(inputs)
    start = fit.snapshot().to_tensors()
    losses = [fit.run_epoch(epoch) for epoch in range(1, 9)]
    assert losses[-1] < losses[0]
    torch.testing.assert_close(tiny_wav2vec2.embed(inputs), before, rtol=0, atol=0)
    moved = {name for name, tensor in fit.snapshot().to_tensors().items() if not torch.equal(tensor, start[name])}
    assert moved == set(start)


def test_same_seed_same_adapter(tiny_wav2vec2: Backbone, tmp_path: Path) -> None:
    ends = []
    for folder in ("a", "b"):
        fit = make_fit(tiny_wav2vec2, tmp_path / folder, augment={"gain": 6, "noise": 0.5})
        fit.run_epoch(1)
        ends.append(fit.snapshot().to_tensors())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_kept_views_are_as_good_as_fresh_ones(tiny_wav2vec2: Backbone, tmp_path: Path) -> None:
    fresh = make_fit(tiny_wav2vec2, tmp_path / "a")
    kept = make_fit(tiny_wav2vec2, tmp_path / "b", augment={"views": 1})
    picks = [Pick(0, 0), Pick(3, 0), Pick(0, 0)]
    ((wanted, _),), ((first, _),) = fresh._front_end([picks[:2]]), kept._front_end([picks])
    torch.testing.assert_close(first[:2], wanted, rtol=2e-3, atol=2e-3)
    assert torch.equal(next(kept._front_end([picks]))[0], first)


def test_divergence_is_said(tiny_wav2vec2: Backbone, tmp_path: Path) -> None:
    fit = make_fit(tiny_wav2vec2, tmp_path)
    with torch.no_grad():
        next(iter(fit.adapter.parameters())).fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match=r"smaller optimiser\.lr"):
        fit.run_epoch(1)
