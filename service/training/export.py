"""From a recipe's adapter to its bundle: geometry, manifest fields, stored precision, counts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from service.model.adapter import AdapterSpec, AdapterWeights, parameter_counts
from service.model.parts.every import read_parts
from service.model.parts.part import LATEST_VERSION
from service.model.spec import BackboneSpec, ModelType, TaskType
from service.registry.manifest import Manifest, build_manifest
from service.training.recipe import BadRecipe, Recipe

BACKBONE_FOLDER = "backbone"  # in a bundle's folder: what full fine-tuning made of the backbone


def adapter_spec(recipe: Recipe, labels: int) -> AdapterSpec:
    """Geometry of the recipe's adapter, which its manifest has been found right for."""
    task = {"task_type": recipe.task_type, "labels": [""] * labels, "embedding_dim": recipe.adapter.embedding_dim}
    window = {"window_frames": recipe.input.window_frames}
    # Only heads and input prompts depend on the architecture, and the manifest has been judged with the real one.
    is_ast = recipe.adapter.head == "ast" or recipe.adapter.input_prompt > 0
    backbone = {"model_type": (ModelType.AST if is_ast else ModelType.WAV2VEC2).value}
    fields = {**part_fields(recipe), **task, "input": window, "backbone": backbone, "format_version": LATEST_VERSION}
    parts, _ = read_parts(fields)
    return AdapterSpec(tuple(parts))


def as_stored(weights: AdapterWeights, dtype: str) -> AdapterWeights:
    """The weights as a server will read them from the bundle."""
    tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in weights.to_tensors().items()}
    return AdapterWeights.from_tensors(weights.spec, tensors)


def manifest_fields(
    recipe: Recipe, backbone: BackboneSpec, labels: tuple[str, ...], found: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The manifest's fields, `found` by training among them; before, with a threshold of 0."""
    verification = recipe.task_type is TaskType.VERIFICATION
    version = adapter_spec(recipe, len(labels)).format_version
    fields: dict[str, Any] = {
        "format_version": LATEST_VERSION if recipe.input.normalize or recipe.input.short == "center" else version,
        "peft_type": "IPET",
        "name": recipe.name,
        "task_type": recipe.task_type.value,
        "base_model_name_or_path": manifest_name(recipe),
        "backbone": {
            "model_type": backbone.model_type.value,
            "hidden_size": backbone.hidden_size,
            "num_hidden_layers": backbone.num_hidden_layers,
            "fingerprint": backbone.fingerprint,
        },
        **part_fields(recipe),
    }
    if verification:
        fields |= {"embedding_dim": recipe.adapter.embedding_dim, "threshold": 0.0}
    else:
        fields |= {"labels": list(labels), "activation": recipe.activation}
    fields["input"] = _input_fields(recipe, backbone)
    if recipe.events.window_frames is not None:
        fields["events"] = {"window_frames": recipe.events.window_frames}
    fields |= {name: told for name in ("description", "license") if (told := getattr(recipe, name)) is not None}
    return fields | dict(found or {})


def planned_manifest(recipe: Recipe, backbone: BackboneSpec, labels: tuple[str, ...]) -> Manifest:
    """The manifest before training, so that what it would refuse is refused before the first step.

    Raises BadRecipe: AST without mean and std, or a window too short for the backbone; InvalidBundle: anything else
    that a server would refuse.
    """
    given = recipe.input
    if backbone.model_type is ModelType.AST and (given.mean is None or given.std is None):
        raise BadRecipe("input.mean and input.std: missing; an AST backbone needs them")
    if given.window_frames < backbone.min_window_frames:
        raise BadRecipe(
            f"input.window_frames: {given.window_frames} is too short for the backbone; "
            f"it needs {backbone.min_window_frames} or more"
        )
    unsettled = recipe.adapter.head != "ipet" or recipe.activation == "sigmoid"
    if recipe.adapter.head_start == "discriminants" and unsettled and recipe.task == "classification":
        raise BadRecipe("adapter.head_start: discriminants are for cross entropy and the head `ipet`")
    masks = recipe.augment
    if masks.mask_time_prob and not backbone.model_type.reads_samples:
        raise BadRecipe("augment.mask_time_prob is for wav2vec 2.0 and its kin; AST has time_mask")
    if backbone.model_type.reads_samples and (masks.time_mask or masks.frequency_mask or masks.input_noise):
        raise BadRecipe("augment.time_mask, frequency_mask and input_noise are for AST backbones only")
    return build_manifest(manifest_fields(recipe, backbone, labels))


def count_parameters(
    spec: AdapterSpec, backbone: BackboneSpec, training_only: int, *, full: bool = False
) -> dict[str, int]:
    """Parameters by part.

    `prompt`, `adapter` and `head` make the `bundle`; `training_only` ones learn and are not exported; `trainable` are
    all that learn, the `backbone` among them where it is fine-tuned whole.
    """
    counts = parameter_counts(spec, backbone)
    bundle = sum(counts.values())
    trainable = bundle + training_only + (backbone.parameters if full else 0)
    return {
        **counts,
        "bundle": bundle,
        "training_only": training_only,
        "backbone": backbone.parameters,
        "trainable": trainable,
    }


def part_fields(recipe: Recipe) -> dict[str, Any]:
    """The manifest's fields of the parts: those of version 1, and of the others what the adapter has."""
    adapter = recipe.adapter
    fields: dict[str, Any] = {"prompt_length": adapter.prompt_length, "bottleneck_dim": adapter.bottleneck_dim}
    fields |= {"adapter_scale": adapter.scale, "adapter_residual": adapter.residual}
    newer = adapter.model_dump(include={"layer_aggregation", "input_prompt", "prefix_length", "lora", "ia3", "bias"})
    newer["head"] = None if adapter.head == "ipet" else adapter.head
    return fields | {name: value for name, value in newer.items() if value}


def _input_fields(recipe: Recipe, backbone: BackboneSpec) -> dict[str, Any]:
    given = recipe.input
    fields: dict[str, Any] = {
        "sampling_rate": 16_000,
        "window_frames": given.window_frames,
        "windows": given.windows,
        "hop_frames": given.hop_frames,
    }
    if backbone.model_type is ModelType.AST:
        fields |= {"mean": given.mean, "std": given.std}
    if given.short is not None:
        fields["short"] = given.short
    if given.normalize:
        fields["normalize"] = True
    if given.aggregate != "mean":
        fields["aggregate"] = given.aggregate
    return fields


def manifest_name(recipe: Recipe) -> str:
    """The name of the bundle's backbone: with full fine-tuning the folder beside it, else the one it was trained on."""
    return BACKBONE_FOLDER if recipe.method == "full" else original_name(recipe)


def original_name(recipe: Recipe) -> str:
    """The name to publish of the backbone that training started from.

    Of a directory only its last part, so that no bundle tells where it was made.
    """
    directory = Path(recipe.backbone)
    return directory.resolve().name if recipe.backbone != "embedded" and directory.is_dir() else recipe.backbone
