"""Small bundles for the registry's tests: a backbone of two layers that never exists."""

import copy
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from service.model.spec import BackboneSpec, ModelType
from service.registry.bundle import BundleFiles
from service.registry.manifest import Manifest, build_manifest

FINGERPRINT = "sha256:" + "ab" * 32
AST = BackboneSpec("tiny-ast", ModelType.AST, 16, 2, 2, 16, 1_000, FINGERPRINT)
WAV2VEC2 = BackboneSpec("tiny-wav2vec2", ModelType.WAV2VEC2, 16, 2, 2, 32, 1_000, FINGERPRINT)

CLASSIFICATION: dict[str, Any] = {
    "format_version": 1,
    "peft_type": "IPET",
    "name": "events",
    "task_type": "AUDIO_CLASSIFICATION",
    "base_model_name_or_path": "tiny-ast",
    "backbone": {
        "model_type": "audio-spectrogram-transformer",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "fingerprint": None,
    },
    "prompt_length": 4,
    "bottleneck_dim": 8,
    "adapter_scale": 0.1,
    "adapter_residual": False,
    "labels": ["dog", "rain"],
    "activation": "softmax",
    "input": {
        "sampling_rate": 16000,
        "window_frames": 512,
        "windows": 1,
        "hop_frames": None,
        "mean": -6.6268077,
        "std": 5.358466,
    },
}
VERIFICATION: dict[str, Any] = {
    "format_version": 1,
    "peft_type": "IPET",
    "name": "speaker",
    "task_type": "SPEAKER_VERIFICATION",
    "base_model_name_or_path": "tiny-wav2vec2",
    "backbone": {"model_type": "wav2vec2", "hidden_size": 16, "num_hidden_layers": 2, "fingerprint": FINGERPRINT},
    "prompt_length": 0,
    "bottleneck_dim": 8,
    "adapter_scale": 1,
    "adapter_residual": True,
    "embedding_dim": 12,
    "threshold": 0.4,
    "calibration": {"slope": 8.0, "intercept": -3.0},
    "input": {"sampling_rate": 16000, "window_frames": 300, "windows": None, "hop_frames": 150},
}


def fields(base: dict[str, Any] = CLASSIFICATION, **changes: Any) -> dict[str, Any]:
    """The fields of a manifest, changed; `backbone__hidden_size=8` reaches into a section."""
    changed = copy.deepcopy(base)
    for path, value in changes.items():
        *sections, key = path.split("__")
        target = changed
        for section in sections:
            target = target[section]
        target[key] = value
    return changed


def tensors(manifest: Manifest, backbone: BackboneSpec = AST, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = manifest.adapter_spec().shapes(backbone)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def bundle(name: str = "events", seed: int = 0, **changes: Any) -> BundleFiles:
    """A bundle for `AST`; another seed is another digest."""
    manifest = build_manifest(fields(name=name, **changes))
    return BundleFiles(manifest.to_bytes(), safetensors.torch.save(tensors(manifest, seed=seed)), b"# card\n")


def write_files(directory: Path, files: BundleFiles) -> None:
    directory.mkdir(parents=True)
    (directory / "adapter_config.json").write_bytes(files.config)
    (directory / "adapter_model.safetensors").write_bytes(files.weights)
