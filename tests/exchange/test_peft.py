"""What PEFT saved answers here as it does there, or is refused by name."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from service.cli.main import app
from service.errors import InvalidBundle
from service.exchange.bundles import import_bundle
from service.exchange.to_peft import export_peft
from service.model.adapter import AdapterWeights, parameter_counts
from service.model.bank import Bank
from service.model.loading import load_backbone
from service.registry.bundle import read_bundle, read_weights
from service.registry.manifest import Manifest, parse_manifest
from tests.backbones import adapter_spec
from tests.exchange.classifiers import KINDS, LABELS, adapt, logits, save_classifier
from tests.model.reference import relative_error

KIN = ("q_proj", "v_proj", "out_proj", "intermediate_dense", "output_dense")
AST = ("q_proj", "v_proj", "o_proj", "fc1", "fc2")


def clip(seconds: float = 0.9) -> np.ndarray[Any, Any]:
    generator = np.random.default_rng(0)
    return (0.3 * generator.standard_normal(int(seconds * 16_000)) + 0.05).astype(np.float32)


def served(bundle: Path, base: Path, samples: np.ndarray[Any, Any]) -> tuple[Manifest, Tensor]:
    """The manifest of a bundle, and its logits of a clip."""
    files = read_bundle(bundle)
    backbone, manifest = load_backbone(str(base), "cpu", "float32"), parse_manifest(files.config)
    weights = AdapterWeights.from_tensors(manifest.adapter_spec(), read_weights(files.weights, manifest, backbone.spec))
    windows = backbone.features.windows(torch.from_numpy(samples), manifest.input_spec())
    with torch.inference_mode():
        return manifest, backbone.answer(windows.inputs, Bank.of(backbone, [weights]), [1] * len(windows.inputs))


def configs(kind: str) -> dict[str, Any]:
    targets = list(AST if kind == "ast" else KIN)
    head = ["classifier"] if kind == "ast" else ["projector", "classifier"]
    fed = ["fc2"] if kind == "ast" else ["output_dense"]
    return {
        "lora": LoraConfig(r=4, lora_alpha=8, target_modules=targets[:2], modules_to_save=head),
        "patterns": LoraConfig(
            r=4,
            lora_alpha=8,
            use_rslora=True,
            target_modules=targets,
            rank_pattern={"v_proj": 2, r".*\.1\..*q_proj": 6},
            alpha_pattern={"q_proj": 5},
            bias="lora_only",
        ),
        "dora": LoraConfig(r=3, lora_alpha=6, use_dora=True, target_modules=targets, modules_to_save=head[-1:]),
        "ia3": IA3Config(target_modules=["k_proj", "v_proj", *fed], feedforward_modules=fed, modules_to_save=head),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["lora", "patterns", "dora", "ia3"])
def test_outputs_are_the_librarys_own(kind: str, family: str, tmp_path: Path) -> None:
    base, saved, out = tmp_path / "base", tmp_path / "saved", tmp_path / "out"
    model = adapt(save_classifier(kind, base), configs(kind)[family], saved)
    import_bundle(saved, out, str(base), name="mine")
    if kind == "wavlm" and family != "ia3":  # its attention reads the weights and skips what is not merged
        model = model.merge_and_unload()
    elif kind == "wavlm":
        pytest.skip("WavLM's attention skips PEFT's vectors")
    manifest, answer = served(out, base, clip())
    assert manifest.labels == LABELS
    assert relative_error(answer, logits(model, base, kind, clip())) < 1e-4


@pytest.mark.parametrize("family", ["lora", "patterns", "dora", "ia3"])
@pytest.mark.parametrize("kind", ["ast", "wav2vec2", "hubert"])
def test_a_bundle_goes_back_to_peft(kind: str, family: str, tmp_path: Path) -> None:
    base, saved, out, back = (tmp_path / name for name in ("base", "saved", "out", "back"))
    config = configs(kind)[family]
    if family == "patterns":
        config.bias = "none"
    model = save_classifier(kind, base)
    adapt(model, config, saved)
    manifest = import_bundle(saved, out, str(base), name="mine")
    done = CliRunner().invoke(app, ["export", str(out), "--base", str(base), "--out", str(back)])
    assert done.exit_code == 0, done.output
    fresh = type(model).from_pretrained(base)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        theirs = PeftModel.from_pretrained(fresh, str(back)).eval()
    _, answer = served(out, base, clip())
    assert relative_error(logits(theirs, base, kind, clip()), answer) < 1e-4
    assert (
        import_bundle(back, tmp_path / "again", str(base), name="mine").adapter_spec().sizes
        == manifest.adapter_spec().sizes
    )


def test_what_peft_has_no_place_for_is_refused(tmp_path: Path) -> None:
    base, saved, out = tmp_path / "base", tmp_path / "saved", tmp_path / "out"
    adapt(save_classifier("wav2vec2", base), configs("wav2vec2")["patterns"], saved)
    import_bundle(saved, out, str(base))
    with pytest.raises(InvalidBundle, match=r"layers\.0\.bias\.\w+: PEFT has no place for it"):
        export_peft(out, tmp_path / "back", str(base))
    assert not (tmp_path / "back").exists()


def test_the_command_and_labels_of_a_file(tmp_path: Path) -> None:
    base, saved, labels = tmp_path / "base", tmp_path / "My-LoRA", tmp_path / "labels.txt"
    adapt(save_classifier("wav2vec2", base), configs("wav2vec2")["lora"], saved)
    labels.write_text("a\nb\nc\n")
    arguments = ["import", str(saved), "--base", str(base), "--labels", str(labels), "--window-frames", "64"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    manifest = parse_manifest(read_bundle(tmp_path / "out").config)
    assert (manifest.name, manifest.labels, manifest.window_frames) == ("my-lora", ("a", "b", "c"), 64)
    labels.write_text("a\nb\n")
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "other")])
    assert done.exit_code == 1
    assert "3 classes, but 2 labels are given" in done.output
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "PEFT itself cannot run it"),
        ({"peft_type": "VERA"}, "expected LORA or IA3, got VERA"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base's own weights"),
        ({"init_lora_weights": "olora"}, "saved? the adapter converted|save the adapter converted"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"something_new": True}, "something_new = True is not served"),
        ({"rank_pattern": {"(": 2}}, "no regular expression"),
    ],
)
def test_what_cannot_be_exact_is_refused_by_name(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    base, saved = tmp_path / "base", tmp_path / "saved"
    adapt(save_classifier("wav2vec2", base), configs("wav2vec2")["lora"], saved)
    config = json.loads((saved / "adapter_config.json").read_text())
    (saved / "adapter_config.json").write_text(json.dumps(config | changes))
    with pytest.raises(InvalidBundle, match=said):
        import_bundle(saved, tmp_path / "out", str(base))
    assert not (tmp_path / "out").exists()


def test_tensors_that_have_no_place_are_refused_by_name(tmp_path: Path) -> None:
    base, saved = tmp_path / "base", tmp_path / "saved"
    config = LoraConfig(r=2, target_modules=["feature_projection.projection", "q_proj"])
    adapt(save_classifier("wav2vec2", base), config, saved)
    with pytest.raises(InvalidBundle, match=r"LoRA on .*feature_projection\.projection: not a linear map"):
        import_bundle(saved, tmp_path / "out", str(base))
    weights = saved / "adapter_model.safetensors"
    tensors = load_file(weights)
    kept = {name: tensor for name, tensor in tensors.items() if "feature_projection" not in name}
    save_file({**kept, "base_model.model.wav2vec2.encoder.layer_norm.bias": torch.ones(48)}, weights)
    with pytest.raises(InvalidBundle, match=r"encoder\.layer_norm\.bias: only the biases of the layers' linear maps"):
        import_bundle(saved, tmp_path / "out", str(base))
    weights.unlink()
    (saved / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(InvalidBundle, match=r"a pickled adapter_model\.bin is not read"):
        import_bundle(saved, tmp_path / "out", str(base))


@pytest.mark.parametrize(("kind", "targets"), [("ast", ["q_proj", "fc1"]), ("wav2vec2", ["q_proj", "output_dense"])])
def test_parameters_are_as_many_as_pefts(kind: str, targets: list[str], tmp_path: Path) -> None:
    model = adapt(save_classifier(kind, tmp_path / "base"), LoraConfig(r=8, target_modules=targets), tmp_path / "saved")
    theirs = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    spec = load_backbone(str(tmp_path / "base"), "cpu", "float32").spec
    ours = ["q", "fc1" if kind == "ast" else "fc2"]
    lora = adapter_spec(0, 0, lora={"r": 8, "alpha": 8.0, "targets": ours})
    assert parameter_counts(lora, spec)["adapter"] == theirs
