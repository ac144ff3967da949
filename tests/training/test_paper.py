"""The paper's recipes against its published hyper-parameters and parameter counts. No weights are needed."""

from typing import NamedTuple

import pytest
from transformers import ASTConfig, Wav2Vec2Config

from service.model.spec import BackboneSpec, ModelType
from service.training.export import adapter_spec, count_parameters, planned_manifest
from service.training.fit import learning_rate
from service.training.losses import SpeakerLoss
from service.training.methods import METHODS
from service.training.recipe import Recipe, read_recipe
from service.training.shipped import find_recipe, recipe_rows, recipe_table, shipped_recipes

AST, WAV2VEC2 = "MIT/ast-finetuned-audioset-10-10-0.4593", "facebook/wav2vec2-base"
CLASSES = {"esc50": 50, "gtzan": 10, "speech-commands": 35, "voxceleb1": 1211, "fsd50k": 200}
LOSSES = {"speech-commands": "binary_cross_entropy", "fsd50k": "binary_cross_entropy"}
WINDOWS = {"gtzan": 10, "voxceleb1": 5}


class Published(NamedTuple):
    batch: int
    frames: int
    prompts: int
    bottleneck: int
    lr: float
    mixup: float
    full_lr: float
    masks: tuple[int, int] = (0, 0)
    noise: bool = False
    mean: float | None = None
    std: float | None = None


PUBLISHED = {
    "esc50-ast": Published(48, 512, 4, 32, 1e-3, 0, 1e-5, (96, 24), False, -6.6268077, 5.358466),
    "gtzan-ast": Published(32, 400, 8, 64, 4.5e-3, 0.3, 5e-5, (80, 48), False, -2.37300301, 3.19099191),
    "speech-commands-ast": Published(128, 128, 4, 128, 5e-3, 0.5, 2.5e-4, (48, 48), True, -6.845978, 5.5654526),
    "voxceleb1-ast": Published(32, 400, 4, 64, 5e-4, 0, 5e-5, (80, 48), True, -4.8955183, 4.2524743),
    "fsd50k-ast": Published(24, 1024, 32, 32, 1e-3, 0.5, 1e-5, (192, 48), False, -2.94206, 4.810963),
    "esc50-wav2vec2": Published(48, 512, 128, 128, 2.5e-3, 0, 5e-5),
    "gtzan-wav2vec2": Published(32, 400, 128, 64, 5e-3, 0.3, 2.5e-5),
    "speech-commands-wav2vec2": Published(64, 128, 64, 64, 1e-3, 0, 5e-5),
    "voxceleb1-wav2vec2": Published(64, 300, 64, 128, 1e-3, 0, 2.5e-5),
    "fsd50k-wav2vec2": Published(24, 1024, 128, 64, 5e-3, 0.5, 5e-5),
}


def task_of(name: str) -> str:
    return name.rpartition("-")[0]


def base(name: str) -> BackboneSpec:
    """The base geometry of a recipe's backbone, from the architecture's default configuration."""
    is_ast = name.endswith("ast")
    config = ASTConfig() if is_ast else Wav2Vec2Config()
    return BackboneSpec(
        name=AST if is_ast else WAV2VEC2,
        model_type=ModelType.AST if is_ast else ModelType.WAV2VEC2,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        embedding_size=config.hidden_size * (1 if is_ast else 2),
        parameters=90_000_000,
        fingerprint="sha256:" + "0" * 64,
    )


def recipe_of(name: str, method: str | None = None) -> Recipe:
    return read_recipe(find_recipe(name), method)


def counts_of(name: str, method: str | None = None) -> dict[str, int]:
    recipe, classes = recipe_of(name, method), CLASSES[task_of(name)]
    loss = SpeakerLoss(recipe.loss, recipe.adapter.embedding_dim, classes)
    training_only = sum(parameter.numel() for parameter in loss.parameters()) if recipe.task == "verification" else 0
    return count_parameters(adapter_spec(recipe, classes), base(name), training_only, full=recipe.method == "full")


@pytest.mark.parametrize("name", PUBLISHED)
def test_hyper_parameters_are_the_published_ones(name: str) -> None:
    recipe, expected = recipe_of(name), PUBLISHED[name]
    augment, adapter, options = recipe.augment, recipe.adapter, recipe.optimiser
    is_ast, task = name.endswith("ast"), task_of(name)
    got = Published(
        options.batch,
        recipe.input.window_frames,
        adapter.prompt_length,
        adapter.bottleneck_dim,
        options.lr,
        augment.mixup,
        recipe_of(name, "full").optimiser.lr,
        (augment.time_mask, augment.frequency_mask),
        augment.input_noise,
        recipe.input.mean,
        recipe.input.std,
    )
    assert got == expected
    assert recipe.name == name
    assert recipe.backbone == (AST if is_ast else WAV2VEC2)
    assert (options.betas, options.weight_decay, options.schedule) == ((0.95, 0.999), 5e-7, "paper")
    assert options.epochs == (30 if is_ast else 40)
    assert (adapter.dropout, adapter.scale, adapter.residual) == (0.1, 0.1, not is_ast)
    assert recipe.loss.kind == LOSSES.get(task, "cross_entropy")
    assert recipe.activation == ("sigmoid" if task in LOSSES else "softmax")
    assert recipe.input.windows == WINDOWS.get(task, 1)
    corrupted = name == "voxceleb1-wav2vec2"
    assert (augment.musan is not None, augment.rirs is not None) == (corrupted, corrupted)
    planned_manifest(recipe, base(name), () if task == "voxceleb1" else ("a", "b"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_learning_rate_falls_as_published(name: str) -> None:
    options = recipe_of(name).optimiser
    for epoch in range(1, options.epochs + 1):
        expected = options.lr * 0.85 ** min(max(epoch - 5, 0), 21)
        assert learning_rate(options, epoch) == learning_rate(options, epoch + 0.9) == pytest.approx(expected)


@pytest.mark.parametrize("name", PUBLISHED)
def test_trainable_parameters_are_the_formulas(name: str) -> None:
    expected, classes = PUBLISHED[name], CLASSES[task_of(name)]
    width = base(name).embedding_size
    prompt, adapter = 12 * expected.prompts * 768, 12 * (1537 * expected.bottleneck + 768)
    verification = task_of(name) == "voxceleb1"
    head = 128 * width + 128 if verification else 2 * width + classes * width + classes
    speakers = 2 * 128 + classes * 128 + classes if verification else 0
    counts = counts_of(name)
    assert (counts["prompt"], counts["adapter"], counts["head"]) == (prompt, adapter, head)
    assert counts["bundle"] == prompt + adapter + head
    assert counts["training_only"] == speakers
    assert counts["trainable"] == prompt + adapter + head + speakers
    assert counts_of(name, "prompt")["bundle"] == prompt + head
    assert counts_of(name, "adapter")["bundle"] == adapter + head
    assert counts_of(name, "linear")["bundle"] == head
    if name.endswith("ast"):
        frame = 2 * 16 * expected.frames + 2 * 16 * (128 - 2 * 16)
        assert counts_of(name, "input-prompt")["bundle"] == frame + head
    assert counts_of(name, "full")["trainable"] == counts["backbone"] + head + speakers


def test_esc50_has_the_papers_0_676_million() -> None:
    assert counts_of("esc50-ast")["bundle"] == 676_274


def test_recipes_are_listed_and_found_by_name() -> None:
    assert set(PUBLISHED) <= set(shipped_recipes())
    rows = {row["recipe"]: row for row in recipe_rows()}
    assert (rows["gtzan-ast"]["lr"], rows["gtzan-ast"]["lr (full)"]) == ("0.0045", "5e-05")
    assert (rows["gtzan-ast"]["frames"], rows["esc50-wav2vec2"]["backbone"]) == ("400", "wav2vec2-base")
    assert rows["gtzan-ast"].keys() == rows["folders"].keys()
    assert "gtzan-ast" in recipe_table()
    assert set(rows) == set(shipped_recipes())


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_can_be_read_for_every_method(name: str) -> None:
    for method in METHODS:
        if method != "input-prompt" or name.endswith("-ast"):
            assert recipe_of(name, method).name == name
