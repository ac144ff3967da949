"""Small backbones of both architectures with random weights, saved as Hugging Face directories."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    ASTConfig,
    ASTModel,
    Data2VecAudioConfig,
    Data2VecAudioModel,
    HubertConfig,
    HubertModel,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)

from service.model.adapter import AdapterSpec, AdapterWeights
from service.model.parts.every import read_parts
from service.model.parts.part import LATEST_VERSION
from service.model.spec import BackboneSpec, TaskType


def save_tiny_ast(path: Path, frames: int = 128) -> Path:
    config = ASTConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        frequency_stride=16,
        time_stride=10,
        max_length=frames,
    )
    return _save(ASTModel, config, path)


def save_tiny_wav2vec2(path: Path, norm: str = "group") -> Path:
    config = Wav2Vec2Config(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        conv_dim=(16, 16, 32),
        conv_kernel=(10, 8, 4),
        conv_stride=(5, 8, 4),
        feat_extract_norm=norm,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
    )
    return _save(Wav2Vec2Model, config, path)


_SMALL: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "conv_dim": (16, 16, 32),
    "conv_kernel": (10, 8, 4),
    "conv_stride": (5, 8, 4),
    "num_conv_pos_embedding_groups": 4,
}
_KIN: dict[str, tuple[type[PreTrainedModel], Any, dict[str, Any]]] = {
    "wav2vec2-stable": (Wav2Vec2Model, Wav2Vec2Config, {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}),
    "hubert": (HubertModel, HubertConfig, {}),
    "hubert-stable": (HubertModel, HubertConfig, {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}),
    "hubert-batch-norm": (HubertModel, HubertConfig, {"conv_pos_batch_norm": True, "feat_proj_layer_norm": False}),
    "data2vec-audio": (Data2VecAudioModel, Data2VecAudioConfig, {"conv_pos_kernel_size": 7}),
    "wavlm": (WavLMModel, WavLMConfig, {"num_buckets": 24, "max_bucket_distance": 30}),
    "wavlm-stable": (WavLMModel, WavLMConfig, {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}),
}
KIN = tuple(_KIN)  # of wav2vec 2.0


def save_tiny_kin(path: Path, kind: str) -> Path:
    """A backbone of wav2vec 2.0's family, one of `KIN`."""
    architecture, config, options = _KIN[kind]
    deep = {"num_conv_pos_embeddings": 2 if kind == "data2vec-audio" else 8}
    return _save(architecture, config(**_SMALL, **deep, **options), path)


def _save(architecture: type[PreTrainedModel], config: object, path: Path) -> Path:
    torch.manual_seed(7)
    model = architecture(config).eval()
    with torch.no_grad():  # initial weights are too tame to tell a right forward from a wrong one
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.1))
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand_like(buffer))
    model.save_pretrained(path)
    return path


def spec_of(fields: Mapping[str, Any]) -> AdapterSpec:
    """The geometry of a manifest's fields. Raises ValidationError."""
    parts, errors = read_parts(fields)
    if errors:
        raise errors[0]
    return AdapterSpec(tuple(parts))


def adapter_spec(
    prompt_length: int = 4,
    bottleneck_dim: int = 8,
    *,
    task: TaskType = TaskType.CLASSIFICATION,
    residual: bool = False,
    scale: float = 0.5,
    outputs: int = 5,
    frames: int = 0,
    **parts: Any,
) -> AdapterSpec:
    """The geometry of a manifest with these fields; `frames` are those of its windows."""
    return spec_of(
        {
            "format_version": LATEST_VERSION,
            "task_type": task,
            "labels": [str(i) for i in range(outputs)],
            "embedding_dim": outputs,
            "prompt_length": prompt_length,
            "bottleneck_dim": bottleneck_dim,
            "adapter_scale": scale,
            "adapter_residual": residual,
            "input": {"window_frames": frames},
            **parts,
        }
    )


def random_adapter(
    spec: AdapterSpec, backbone: BackboneSpec, seed: int = 0, std: float = 0.02, names: Collection[str] = ()
) -> AdapterWeights:
    """An adapter of normally distributed weights, around one for what multiplies.

    Args:
        names: of optional tensors that it has.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in spec.shapes(backbone, names).items():
        centre = 1.0 if name.endswith(("norm.weight", ".magnitude")) or ".ia3." in name else 0.0
        tensors[name] = torch.randn(shape, generator=generator) * std + centre
    return AdapterWeights.from_tensors(spec, tensors)
