"""An import that cannot equal the library's own outputs is refused by name, and leaves what was there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from service.errors import InvalidBundle
from service.exchange.bundles import import_bundle
from service.exchange.to_peft import export_peft
from service.model.checkpoint import load_checkpoint
from tests.exchange.classifiers import adapt, save_classifier
from tests.exchange.test_authors import state_of
from tests.exchange.test_peft import configs

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A base, and a LoRA of it that PEFT saved."""
    base, saved = tmp_path / "base", tmp_path / "saved"
    adapt(save_classifier("wav2vec2", base), configs("wav2vec2")["lora"], saved)
    return base, saved


def refused(saved: Path, base: Path, said: str) -> None:
    out = saved.parent / "new" / "out"
    with pytest.raises(InvalidBundle, match=said):
        import_bundle(saved, out, str(base))
    assert not out.parent.exists()


def test_an_adapter_of_another_architecture(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, saved = pair
    save_classifier("hubert", tmp_path / "hubert")
    refused(saved, tmp_path / "hubert", "trained on a Wav2Vec2ForSequenceClassification, and the base is hubert")
    change(saved / CONFIG, auto_mapping=None)
    refused(saved, tmp_path / "hubert", "of a wav2vec2 model, and the base is hubert")
    change(saved / CONFIG, auto_mapping={"base_model_class": "Wav2Vec2ForCTC"})
    refused(saved, base, "trained on a Wav2Vec2ForCTC")
    change(saved / CONFIG, auto_mapping=None)
    tensors = {name.replace("wav2vec2.", "other.model."): t for name, t in load_file(saved / WEIGHTS).items()}
    save_file(tensors, saved / WEIGHTS)
    refused(saved, base, r"LoRA on other\.model\.encoder")


def test_the_name_of_another_base_is_told(
    pair: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base, saved = pair
    import_bundle(saved, tmp_path / "out", str(base))
    assert "be sure" not in caplog.text
    change(saved / CONFIG, base_model_name_or_path="facebook/hubert-base-ls960", revision="v2")
    import_bundle(saved, tmp_path / "out", str(base))
    assert "was trained on facebook/hubert-base-ls960, and the base is" in caplog.text
    assert "revision v2" in caplog.text


def test_a_refused_import_leaves_the_bundle(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, saved = pair
    import_bundle(saved, tmp_path / "out", str(base))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    tensors = load_file(saved / WEIGHTS)
    name = next(name for name in tensors if name.endswith("lora_A.weight"))
    for spoilt, said in (
        (tensors[name] * float("nan"), "NaN"),
        (tensors[name][:, :5].contiguous(), "expected"),
    ):
        save_file(tensors | {name: spoilt}, saved / WEIGHTS)
        refused(saved, base, said)
        with pytest.raises(InvalidBundle, match=said):
            import_bundle(saved, tmp_path / "out", str(base))
    adapt(
        save_classifier("wav2vec2", base), LoraConfig(r=129, lora_alpha=8, target_modules=["q_proj"]), tmp_path / "big"
    )
    refused(tmp_path / "big", base, r"lora\.r: expected at most 128, got 129")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_nothing_replaces_what_it_is_made_of(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, saved = pair
    before = (saved / CONFIG).read_bytes()
    with pytest.raises(InvalidBundle, match="give another --out"):
        import_bundle(saved, saved, str(base))
    assert (saved / CONFIG).read_bytes() == before
    import_bundle(saved, tmp_path / "out", str(base))
    with pytest.raises(InvalidBundle, match="give another --out"):
        export_peft(tmp_path / "out", tmp_path / "out", str(base))


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        ("config.json", {"adapter_attn_dim": 16}, "adapter_attn_dim 16: adapter layers of its own"),
        ("config.json", {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config; name the"),
        ("config.json", {"problem_type": "regression"}, "problem_type regression: only classes"),
        ("config.json", {"id2label": {"1": "a", "2": "b", "3": "c"}}, "0 labels from class 0"),
        ("preprocessor_config.json", {"sampling_rate": 8000}, "sampling_rate 8000: expected 16000"),
    ],
)
def test_bases_that_are_not_served_exactly(
    file: str, values: dict[str, Any], said: str, pair: tuple[Path, Path]
) -> None:
    base, saved = pair
    change(base / file, **values)
    refused(saved, base, said)


def test_one_output_is_a_regression(pair: tuple[Path, Path]) -> None:
    base, saved = pair
    tensors = {
        name: tensor[:1].contiguous() if ".classifier." in name else tensor
        for name, tensor in load_file(saved / WEIGHTS).items()
    }
    save_file(tensors, saved / WEIGHTS)
    refused(saved, base, "1 outputs and problem_type regression")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"r": None}, "r: expected a number, got 'None'"),
        ({"r": "8"}, "r: expected a number, got '8'"),
        ({"lora_alpha": []}, "lora_alpha: expected a number"),
        ({"rank_pattern": [4]}, "rank_pattern: expected an object of numbers"),
        ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern: expected an object of numbers"),
    ],
)
def test_options_of_another_type(values: dict[str, Any], said: str, pair: tuple[Path, Path]) -> None:
    base, saved = pair
    change(saved / CONFIG, **values)
    refused(saved, base, said)


@pytest.mark.parametrize(
    ("end", "twin"),
    [
        (".lora_A.weight", lambda name: name.removeprefix("base_model.model.")),
        ("0.attention.q_proj.lora_A.weight", lambda name: name.replace("wav2vec2.encoder.", "encoder.")),
        ("model.classifier.weight", lambda name: name.replace(".weight", ".modules_to_save.default.weight")),
    ],
)
def test_a_tensor_that_is_there_twice(end: str, twin: Callable[[str], str], pair: tuple[Path, Path]) -> None:
    base, saved = pair
    tensors = load_file(saved / WEIGHTS)
    name = next(name for name in tensors if name.endswith(end))
    save_file(tensors | {twin(name): tensors[name] + 1}, saved / WEIGHTS)
    refused(saved, base, "a second tensor for")


def test_weights_of_layers_that_nobody_sums(pair: tuple[Path, Path]) -> None:
    base, saved = pair
    save_file(load_file(saved / WEIGHTS) | {"base_model.model.layer_weights": torch.ones(4)}, saved / WEIGHTS)
    refused(saved, base, "the head has layer_weights, which no head served here has")


def test_a_file_without_labels(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, saved = pair
    with pytest.raises(InvalidBundle, match="3 classes, but 0 labels are given"):
        import_bundle(saved, tmp_path / "out", str(base), labels=[])


def test_options_that_are_not_there_are_pefts_own(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, saved = pair
    adapt(save_classifier("wav2vec2", base), LoraConfig(target_modules=["q_proj"]), saved)
    config = json.loads((saved / CONFIG).read_text())
    given = config.pop("r"), config.pop("lora_alpha")
    (saved / CONFIG).write_text(json.dumps(config))
    section = import_bundle(saved, tmp_path / "out", str(base)).to_bytes()
    assert (json.loads(section)["lora"]["r"], json.loads(section)["lora"]["alpha"]) == given


def test_all_biases(pair: tuple[Path, Path]) -> None:
    base, saved = pair
    adapt(save_classifier("wav2vec2", base), LoraConfig(target_modules=["q_proj"], bias="all"), saved)
    refused(saved, base, "bias = 'all' trains every bias of the model; .* train with bias='lora_only'")


def _timm(base: Path) -> dict[str, Tensor]:
    own = load_checkpoint(str(base)).tensors
    names = {
        "cls_token": "embeddings.cls_token",
        "dist_token": "embeddings.distillation_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
        "blocks.0.norm1.weight": "encoder.layer.0.layernorm_before.weight",
        "blocks.2.mlp.fc1.bias": "encoder.layer.2.intermediate.dense.bias",
    }
    return {f"v.{theirs}": own[ours].clone() for theirs, ours in names.items()}


def test_the_authors_frozen_tensors_are_compared(tmp_path: Path) -> None:
    base, source = tmp_path / "base", tmp_path / "source"
    save_classifier("ast", base)
    theirs, _ = state_of("ast", base)
    frozen = _timm(base)
    source.mkdir()
    torch.save(theirs | frozen | {"v.head.weight": torch.ones(3, 4)}, source / "best.pth")
    import_bundle(source, tmp_path / "out", str(base))
    for name, tensor in frozen.items():
        torch.save(theirs | frozen | {name: tensor + 0.1}, source / "best.pth")
        refused(source, base, f"{name}: not the base's own")


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("v.blocks.0.adaptmlp.adapter_layer_norm_before.weight", lambda: torch.ones(48), "it has no place here"),
        ("v.time_prompt", lambda: torch.ones(1, 4, 48), "it has no place here"),
        ("v.freq_prompt", lambda: torch.ones(1, 4, 48), "it has no place here"),
        ("v.blocks.0.gate.weight", lambda: torch.ones(48), "it has no place here"),
        ("embedding_prompt0", lambda: torch.ones(2, 2, 48), r"layers\.0\.prompt: expected"),
        ("mlp_head.2.weight", lambda: torch.ones(3, 48), "a second tensor for head.linear.weight"),
        ("mlp_head_ft.1.bias", lambda: torch.ones(3), "mlp_head_ft.1.bias: "),
        ("v.embedding_prompt0", lambda: torch.ones(1, 4, 48), "a second tensor for layers.0.prompt"),
        ("v.blocks.0.adaptmlp.scale", lambda: torch.tensor([0.5]), "scales differ"),
        ("v.blocks.0.adaptmlp.scale", lambda: torch.ones(48), "expected one number"),
        ("hubert.encoder.layers.0.adapter.up_proj.weight", lambda: torch.ones(48, 8), "of a hubert model"),
        ("epoch", lambda: 3, "epoch: not a tensor; save"),
    ],
)
def test_what_the_authors_have_more_is_refused(
    name: str, make: Callable[[], object], said: str, tmp_path: Path
) -> None:
    base, source = tmp_path / "base", tmp_path / "source"
    save_classifier("ast", base)
    source.mkdir()
    torch.save(state_of("ast", base)[0] | {name: make()}, source / "best.pth")
    refused(source, base, said)
