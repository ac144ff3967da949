"""Every architecture against Hugging Face's own forward: small ones always, base and large geometry where asked for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    ASTConfig,
    AutoModel,
    Data2VecAudioConfig,
    HubertConfig,
    PreTrainedConfig,
    Wav2Vec2Config,
    WavLMConfig,
)

from service.model.backbone import Backbone
from service.model.bank import Bank
from service.model.checkpoint import load_checkpoint
from service.model.loading import load_backbone
from tests.backbones import KIN, save_tiny_kin
from tests.model.reference import relative_error

LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
    "conv_bias": True,
}
REAL: dict[str, PreTrainedConfig] = {
    "ast": ASTConfig(),
    "wav2vec2-base": Wav2Vec2Config(),
    "wav2vec2-large": Wav2Vec2Config(**LARGE),
    "hubert-base": HubertConfig(),
    "hubert-large": HubertConfig(**LARGE),
    "data2vec-audio-base": Data2VecAudioConfig(),
    "wavlm-base": WavLMConfig(),
    "wavlm-large": WavLMConfig(**LARGE),
}


def compare(directory: Path, backbone: Backbone, frames: int) -> float:
    """The bare backbone's embedding against Hugging Face's last hidden states, pooled."""
    model = AutoModel.from_pretrained(directory, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn((2, *backbone.input_shape(frames)), generator=generator) * 0.5
    with torch.no_grad():
        hidden = model(inputs).last_hidden_state
        answer = backbone.forward(inputs, Bank(backbone, 0), [0, 0])
    if backbone.spec.model_type.reads_samples:
        return relative_error(answer, torch.cat((hidden.mean(1), hidden.std(1)), dim=1))
    return relative_error(answer, hidden[:, :2].mean(dim=1))


@pytest.mark.parametrize("frames", [64, 200])
@pytest.mark.parametrize("kind", KIN)
def test_kin_of_wav2vec2_equal_hugging_face(kind: str, frames: int, tmp_path: Path) -> None:
    directory = save_tiny_kin(tmp_path, kind)
    for options in ({}, {"for_inference": True}):
        assert compare(directory, load_backbone(str(directory), "cpu", "float32", **options), frames) < 1e-5
    half = load_backbone(str(directory), "cpu", "bfloat16", for_inference=True)
    assert compare(directory, half, frames) < 5e-2
    eighth = load_backbone(str(directory), "cpu", "float32", for_inference=True, weights="int8")
    assert compare(directory, eighth, frames) < 0.15


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_geometry_equals_hugging_face(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModel.from_config(REAL[name])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path)
    del model
    backbone = load_backbone(str(tmp_path), "cpu", "float32", for_inference=True)
    assert compare(tmp_path, backbone, 1024 if name == "ast" else 128) < 1e-5


def test_a_checkpoints_own_adapters_are_left_out(tmp_path: Path) -> None:
    """As MMS has them: one language's, which our forward does not run."""
    directory = save_tiny_kin(tmp_path, "wav2vec2-stable")
    expected = load_checkpoint(str(directory)).fingerprint()
    tensors = load_file(directory / "model.safetensors")
    tensors["encoder.layers.0.adapter_layer.norm.weight"] = torch.ones(48)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    assert load_checkpoint(str(directory)).fingerprint() == expected


def test_a_checkpoint_without_safetensors_loads_and_a_pickle_that_runs_does_not(tmp_path: Path) -> None:
    directory = save_tiny_kin(tmp_path, "hubert")
    expected = load_checkpoint(str(directory)).fingerprint()
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    torch.save(tensors, directory / "pytorch_model.bin")
    assert load_checkpoint(str(directory)).fingerprint() == expected
    torch.save({**tensors, "evil": _Runs(tmp_path / "ran")}, directory / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no tensors that can be read safely: it is a pickle of more than tensors"):
        load_checkpoint(str(directory))
    assert not (tmp_path / "ran").exists()


class _Runs:
    """What a pickle can do to those who load it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)
