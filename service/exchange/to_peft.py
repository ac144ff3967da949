"""A bundle of LoRA, DoRA or IA3 -> a directory that PEFT loads, where PEFT has a place for each of its parts."""

import dataclasses
import json
import logging
import shutil
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import safetensors.torch
from torch import Tensor

from service.errors import InvalidBundle
from service.exchange.base import Base
from service.exchange.bundles import read_foreign
from service.exchange.modules import spellings
from service.exchange.peft import check_room
from service.model.adapter import AdapterSpec
from service.model.parts.ia3 import IA3
from service.model.parts.low_rank import LowRank
from service.model.spec import TaskType
from service.registry.bundle import WEIGHTS_FILE, read_bundle, read_weights
from service.registry.manifest import CONFIG_FILE, Manifest, parse_manifest

_log = logging.getLogger(__name__)

_ONE_LABEL = "single_label_classification"
_ANSWERS = {"task_type", "activation", "calibration", "reject_below", "merge", "events"}  # fields beside `input`
_ENDS = {"a": "lora_A.weight", "b": "lora_B.weight", "magnitude": "lora_magnitude_vector"}


def export_peft(bundle: Path, out: Path, base_name: str) -> list[str]:
    """Write `adapter_config.json` and `adapter_model.safetensors` as PEFT has them, and the classifier's `config.json`.

    What `ipet import` of the directory would answer otherwise than the bundle is warned of.

    Returns:
        The modules that are adapted.

    Raises:
        InvalidBundle: a part that PEFT cannot hold, by name; or the directory holds something.
    """
    check_room(out)
    files, base = read_bundle(bundle), Base.load(base_name)
    manifest = parse_manifest(files.config)
    if manifest.task_type is TaskType.VERIFICATION:
        raise InvalidBundle(f"{manifest.name} is for {TaskType.VERIFICATION}, which transformers' classifiers are not")
    tensors, spec = read_weights(files.weights, manifest, base.spec), manifest.adapter_spec()
    names = {f"head.{ours}": theirs for theirs, ours in base.head_names.items()}
    saved: dict[str, Tensor] = {}
    addresses: dict[str, tuple[int, str]] = {}
    for name, tensor in sorted(tensors.items()):
        parts = name.split(".")
        if name in names:
            saved[names[name]] = tensor
        elif parts[0] == "layers" and parts[2] in ("lora", "ia3"):
            module = spellings(int(parts[1]), parts[3], base.model_type)[0]
            addresses[module] = int(parts[1]), parts[3]
            end = "ia3_l" if parts[2] == "ia3" else _ENDS[parts[4]]
            saved[f"{module}.{end}"] = tensor
        else:
            raise InvalidBundle(
                f"{name}: PEFT has no place for it; LoRA, DoRA, IA3 and Hugging Face's own heads can be exported"
            )
    if manifest.labels is not None and set(names.values()) - saved.keys():
        raise InvalidBundle(
            f"head: PEFT has no place for that of {manifest.name}; train with adapter.head = "
            f"{'pooled-projector' if base.model_type.reads_samples else 'ast'}"
        )
    config = {
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "target_modules": list(addresses),
        "modules_to_save": sorted({theirs.partition(".")[0] for theirs in names.values() if theirs in saved}) or None,
        **_family(spec, saved, addresses),
    }
    written = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in saved.items()}
    with TemporaryDirectory() as made:
        safetensors.torch.save_file(written, Path(made) / WEIGHTS_FILE)
        (Path(made) / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if manifest.labels is not None:
            _classifier(manifest, saved, base).save_pretrained(made)
        _warn_of_losses(manifest, read_foreign(Path(made), base, manifest.name)[0])
        shutil.copytree(made, out, dirs_exist_ok=True)
    return list(addresses)


def _classifier(manifest: Manifest, saved: dict[str, Tensor], base: Base) -> Any:
    """The configuration of the classifier that the adapter is for: the base's, with the bundle's labels and head."""
    config = deepcopy(base.config)
    config.id2label = dict(enumerate(manifest.labels or ()))
    config.label2id = {label: i for i, label in config.id2label.items()}
    config.problem_type = "multi_label_classification" if manifest.activation == "sigmoid" else _ONE_LABEL
    if "projector.weight" in saved:
        config.classifier_proj_size, config.use_weighted_layer_sum = len(saved["projector.weight"]), False
    return config


def _warn_of_losses(own: Manifest, back: Manifest) -> None:
    """Warn of what PEFT's files have no place for and makes other answers: `back` is what an import reads of them."""
    said, other = (
        one.model_dump(mode="json", include=_ANSWERS, exclude_none=True)
        | {f"input.{name}": value for name, value in dataclasses.asdict(one.input_spec()).items()}
        for one in (own, back)
    )
    for name in sorted(said.keys() | other.keys()):
        if said.get(name) != other.get(name):
            values = said.get(name), other.get(name)
            _log.warning("%s is %s, and %s in PEFT's files and the base's: see to it where they run", name, *values)


def _family(spec: AdapterSpec, saved: dict[str, Tensor], addresses: dict[str, tuple[int, str]]) -> dict[str, Any]:
    """PEFT's options of LoRA or of IA3, whose vectors become columns, or rows where they scale inputs."""
    low_rank, vectors = spec.find(LowRank), spec.find(IA3)
    if (low_rank is None) == (vectors is None):
        raise InvalidBundle("PEFT holds LoRA or IA3 in one adapter: the bundle has both or neither")
    if vectors is not None and vectors.ia3 is not None:
        fed = [module for module, (_, target) in addresses.items() if target in vectors.ia3.input]
        for module in addresses:
            vector = saved[f"{module}.ia3_l"]
            saved[f"{module}.ia3_l"] = vector[None] if module in fed else vector[:, None]
        return {"peft_type": "IA3", "feedforward_modules": fed}
    section = (low_rank or LowRank()).section
    ranks = {module: section.rank(*address) for module, address in addresses.items()}
    alphas = {
        module: section.factor(*address) * (ranks[module] ** 0.5 if section.rslora else ranks[module])
        for module, address in addresses.items()
    }
    return {
        "peft_type": "LORA",
        "r": section.r,
        "lora_alpha": section.alpha,
        "use_rslora": section.rslora,
        "use_dora": section.dora,
        "rank_pattern": {module: rank for module, rank in ranks.items() if rank != section.r},
        "alpha_pattern": {module: alpha for module, alpha in alphas.items() if alpha != section.alpha},
    }
