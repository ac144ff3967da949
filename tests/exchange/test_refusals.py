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
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification, Wav2Vec2Model

from service.errors import InvalidBundle
from service.exchange.bundles import import_bundle
from service.exchange.to_peft import export_peft
from service.model.checkpoint import load_checkpoint
from tests.exchange.classifiers import adapt, logits, save_classifier
from tests.exchange.test_authors import state_of
from tests.exchange.test_peft import clip, configs, served
from tests.model.reference import relative_error

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


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("model.classifier.bias", r"classifier\.bias: not in the adapter's file, though modules_to_save says"),
        ("model.projector.", r"projector\.bias and 1 more: not in the adapter's file"),
        (".layers.1.", r"layers\.1\.attention\.q_proj\.lora_A\.weight and 1 more: .* though target_modules says"),
        (".lora_", "lora_A.weight and 5 more"),
    ],
)
def test_all_that_was_trained_has_to_be_there(gone: str, said: str, pair: tuple[Path, Path]) -> None:
    base, saved = pair
    tensors = load_file(saved / WEIGHTS)
    save_file({name: tensor for name, tensor in tensors.items() if gone not in name}, saved / WEIGHTS)
    refused(saved, base, said)


def test_all_has_to_be_there_under_older_names_too(tmp_path: Path) -> None:
    base, saved = tmp_path / "base", tmp_path / "saved"
    adapt(save_classifier("ast", base), LoraConfig(r=2, target_modules=["q_proj", "fc1"]), saved)
    older = [("layers.", "encoder.layer."), ("attention.q_proj", "attention.attention.query")]
    tensors = load_file(saved / WEIGHTS)
    for now, then in (*older, ("mlp.fc1", "intermediate.dense")):
        tensors = {name.replace(now, then): tensor for name, tensor in tensors.items()}
    save_file(tensors, saved / WEIGHTS)
    change(saved / CONFIG, target_modules=["query", "intermediate.dense"])
    import_bundle(saved, tmp_path / "out", str(base))
    save_file({name: tensor for name, tensor in tensors.items() if ".2.intermediate." not in name}, saved / WEIGHTS)
    refused(saved, base, r"layers\.2\.mlp\.fc1\.lora_A\.weight: not in the adapter's file")


def test_parts_that_were_not_trained_may_be_missing(tmp_path: Path) -> None:
    base, saved = tmp_path / "base", tmp_path / "saved"
    chosen: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"]}
    for more in ({"layers_to_transform": [0, 2]}, {"exclude_modules": r".*\.1\.attention\.q_proj"}):
        adapt(save_classifier("wav2vec2", base), LoraConfig(r=2, **chosen, **more), saved)
        import_bundle(saved, tmp_path / "out", str(base))
    adapt(
        save_classifier("wav2vec2", base), LoraConfig(r=2, task_type="SEQ_CLS", target_modules=r".*fc1|.*q_proj"), saved
    )
    import_bundle(saved, tmp_path / "out", str(base))  # PEFT lists `classifier` and `score` for it
    change(saved / CONFIG, modules_to_save=["classifier", "layer_norm"])
    refused(saved, base, r"norm\.\w+ and \d+ more: not in the adapter's file, though modules_to_save")
    change(saved / CONFIG, modules_to_save="classifier")
    refused(saved, base, "modules_to_save: expected a list of names, got classifier")
    change(saved / CONFIG, modules_to_save=["classifier"], bias="lora_only")
    refused(saved, base, r"q_proj\.bias and 2 more: .* bias = 'lora_only' says")
    change(saved / CONFIG, bias="none", target_modules=["nothing"])
    save_file({name: t for name, t in load_file(saved / WEIGHTS).items() if ".lora_" not in name}, saved / WEIGHTS)
    refused(saved, base, "holds no tensor of LORA")


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A base without a head."""
    model: Any = save_classifier("wav2vec2", tmp_path / "classifier")
    model.wav2vec2.save_pretrained(tmp_path / "bare")
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(tmp_path / "bare")
    return tmp_path / "bare"


def test_a_classifier_has_a_head(bare: Path, tmp_path: Path) -> None:
    saved, said = tmp_path / "saved", r"save it with modules_to_save = \['classifier', 'projector'\]"
    model = Wav2Vec2ForSequenceClassification.from_pretrained(bare, num_labels=4)
    adapt(model, LoraConfig(r=4, target_modules=["q_proj"]), saved)
    refused(saved, bare, said)
    change(saved / CONFIG, auto_mapping=None, task_type="SEQ_CLS")
    refused(saved, bare, said)
    adapt(Wav2Vec2Model.from_pretrained(bare), LoraConfig(r=4, target_modules=["q_proj"], bias="lora_only"), saved)
    assert import_bundle(saved, tmp_path / "out", str(bare)).task_type == "FEATURE_EXTRACTION"
    with pytest.raises(InvalidBundle, match=said):
        import_bundle(saved, tmp_path / "out", str(bare), labels=list("abcd"))


def test_a_base_that_holds_an_adapter_too(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, saved = pair
    (base / CONFIG).write_bytes((saved / CONFIG).read_bytes())
    with pytest.raises(ValueError, match=r"holds an adapter_config\.json too; name a directory of the model alone"):
        import_bundle(saved, tmp_path / "out", str(base))


def test_a_directory_in_use_is_not_written_into(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, saved = pair
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "README.md").write_text("mine")
    import_bundle(saved, tmp_path / "out", str(base))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for out in (base, saved, tmp_path / "project"):
        with pytest.raises(InvalidBundle, match="holds other files; give another --out, which is new or empty"):
            import_bundle(saved, out, str(base))
        with pytest.raises(InvalidBundle, match="give another --out"):
            export_peft(tmp_path / "out", out, str(base))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_broken_extractor_and_a_head_of_another_size(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, saved = pair
    change(base / "config.json", classifier_proj_size=24)
    with pytest.raises(ValueError, match=r"is \[3, 20\] in its files, and \[3, 24\] by its config\.json"):
        import_bundle(saved, tmp_path / "out", str(base))
    change(base / "config.json", classifier_proj_size=20)
    (base / "preprocessor_config.json").write_text("{broken")
    with pytest.raises(OSError, match="not a valid JSON"):
        import_bundle(saved, tmp_path / "out", str(base))


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.float4_e2m1fn_x2])
def test_tensors_that_are_no_real_numbers(dtype: torch.dtype, pair: tuple[Path, Path]) -> None:
    base, saved = pair
    tensors = {name: tensor.to(torch.int8) for name, tensor in load_file(saved / WEIGHTS).items()}
    four_bits = dtype is torch.float4_e2m1fn_x2  # to which nothing is converted
    made = {name: t.view(dtype) if four_bits else t.to(dtype) for name, t in tensors.items()}
    save_file(made, saved / WEIGHTS)
    refused(saved, base, f"expected floating-point numbers, got {dtype}")


def test_a_rank_that_no_map_has(tmp_path: Path) -> None:
    base, saved = tmp_path / "base", tmp_path / "saved"
    config = LoraConfig(r=200, target_modules=["q_proj", "v_proj"], rank_pattern={"q_proj": 4, "v_proj": 2})
    model = adapt(save_classifier("wav2vec2", base), config, saved)
    import_bundle(saved, tmp_path / "out", str(base))
    _, answer = served(tmp_path / "out", base, clip())
    assert relative_error(answer, logits(model, base, "wav2vec2", clip())) < 1e-4


def test_vectors_that_contradict_their_options(tmp_path: Path) -> None:
    base, saved = tmp_path / "base", tmp_path / "saved"
    adapt(save_classifier("wav2vec2", base), configs("wav2vec2")["ia3"], saved)
    change(saved / CONFIG, feedforward_modules=["k_proj"])
    refused(saved, base, r"ia3_l: a (row|column), which feedforward_modules contradicts")


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
