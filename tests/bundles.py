"""Bundles of random weights for a backbone."""

from pathlib import Path
from typing import Any

import torch

from service.model.spec import BackboneSpec, TaskType
from service.registry.bundle import COHORT, BundleFiles, write_bundle
from service.registry.manifest import build_manifest

Json = dict[str, Any]


def random_bundle(directory: Path, backbone: BackboneSpec, name: str, seed: int = 0, **fields: Any) -> BundleFiles:
    """A valid bundle for `backbone` with random weights; `fields` go over those of its config."""
    config = config_of(backbone, name, **fields)
    manifest = build_manifest(config)
    generator = torch.Generator().manual_seed(seed)
    shapes = manifest.adapter_spec().shapes(backbone)
    tensors = {key: torch.randn(shape, generator=generator) * 0.3 for key, shape in shapes.items()}
    if manifest.normalisation is not None:
        tensors[COHORT] = torch.nn.functional.normalize(
            torch.randn((120, manifest.embedding_dim or 0), generator=generator)
        )
    return write_bundle(directory / f"{name}-{seed}", manifest, tensors)


def config_of(backbone: BackboneSpec, name: str, task: TaskType = TaskType.CLASSIFICATION, **fields: Any) -> Json:
    """A config for `backbone`, as plain JSON."""
    of_task: Json = {"labels": ["dog", "rain", "clock", "siren", "cat", "wind", "door"], "activation": "softmax"}
    if task is TaskType.FEATURES:
        of_task = {"format_version": 3}
    if task is TaskType.VERIFICATION:
        of_task = {"embedding_dim": 6, "threshold": 0.25, "calibration": {"slope": 8.0, "intercept": -2.0}}
        of_task["speech"] = {"verify_seconds": 0.0}  # noise and tones are verified too
    return {
        "format_version": 1,
        "peft_type": "IPET",
        "name": name,
        "task_type": task.value,
        "base_model_name_or_path": backbone.name,
        "backbone": {
            "model_type": backbone.model_type.value,
            "hidden_size": backbone.hidden_size,
            "num_hidden_layers": backbone.num_hidden_layers,
            "fingerprint": backbone.fingerprint,
        },
        "prompt_length": 3,
        "bottleneck_dim": 4,
        "adapter_scale": 0.1,
        "adapter_residual": False,
        "input": {"sampling_rate": 16000, "window_frames": 64, "windows": None, "mean": -6.0, "std": 5.0},
        **of_task,
        **fields,
    }
