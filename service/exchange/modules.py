"""Other libraries' modules in our words, a layer and one of its linear maps; whether all that learnt are there."""

import re
from collections.abc import Iterable, Mapping
from itertools import accumulate, product
from typing import Any

import torch
from torch import Tensor

from service.errors import InvalidBundle
from service.exchange.base import Base
from service.exchange.expressions import Matcher
from service.model.classifier import class_names
from service.model.loading import ARCHITECTURES
from service.model.spec import TARGETS, ModelType
from service.registry.manifest import CONFIG_FILE

MAX_NAMES = 1000  # of one option
_MOST = {"modules_to_save": 100}
_READ = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2}
_AST = {  # as transformers 5 names them inside; files have the published names still
    "q": "attention.q_proj",
    "k": "attention.k_proj",
    "v": "attention.v_proj",
    "o": "attention.o_proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
_FIRST_PART = {"LORA": ".lora_A.weight", "IA3": ".ia3_l"}  # of a map; its others follow from the manifest
_LAYER = re.compile(r"(?:(\w+)\.)??(?:encoder\.)?layers?\.(0|[1-9][0-9]{0,3})\.(.+)")


def in_float32(name: str, tensor: Tensor) -> Tensor:
    """A tensor as it is computed with. Raises InvalidBundle where it is not of real numbers: quantised, or complex."""
    if tensor.dtype not in _READ:
        raise InvalidBundle(f"{name[:100]}: expected floating-point numbers, got {tensor.dtype}; save it in float32")
    return tensor.float()


def encoder_of(model_type: ModelType) -> str:
    """What a classifier calls its backbone."""
    return model_type.replace("-", "_")


def check_class(name: object, model_type: ModelType) -> None:
    """Raise InvalidBundle unless a class is a model or classifier of the base's own architecture, or is not told."""
    known = class_names(model_type)
    if name is not None and name not in known:
        raise InvalidBundle(
            f"auto_mapping.base_model_class: the adapter was trained on a {str(name)[:60]}, and the base is "
            f"{model_type}: expected {' or '.join(known)}; name the model it was trained on by --base"
        )


def check_prefix(module: str, model_type: ModelType) -> None:
    """Raise InvalidBundle where a module's name begins as another architecture's do."""
    first = module.partition(".")[0]
    if first in {encoder_of(other) for other in ModelType if other is not model_type}:
        raise InvalidBundle(
            f"{module[:100]}: of a {first} model, and the base is {model_type}; name the model it was trained on by "
            "--base"
        )


def target_of(module: str, model_type: ModelType) -> tuple[int, str] | None:
    """Layer and target of a module's name in a classifier or its bare backbone; None for any other module."""
    found = _LAYER.fullmatch(module)
    if found is None or found[1] not in (None, encoder_of(model_type)):
        return None
    now, published = _names(model_type), ARCHITECTURES[model_type].names
    target = next((target for target in TARGETS if found[3] in (now[target], published[target])), None)
    return None if target is None else (int(found[2]), target)


def spellings(layer: int, target: str, model_type: ModelType) -> list[str]:
    """A target's module as transformers names it now, first in a classifier and then bare, and as it is published."""
    published = "encoder.layers" if model_type.reads_samples else "encoder.layer"
    now = published if model_type.reads_samples else "layers"
    bare = (
        f"{now}.{layer}.{_names(model_type)[target]}",
        f"{published}.{layer}.{ARCHITECTURES[model_type].names[target]}",
    )
    return [f"{before}{name}" for name in bare for before in (f"{encoder_of(model_type)}.", "")]


def _names(model_type: ModelType) -> dict[str, str]:
    return _AST if model_type is ModelType.AST else dict(ARCHITECTURES[model_type].names)


def check_complete(matcher: Matcher, config: Mapping[str, Any], saved: Iterable[str], base: Base) -> None:
    """Raise InvalidBundle unless each tensor that was trained, by the options, is among the saved."""
    have, own = {name.replace(".base_layer.", ".") for name in saved}, base.checkpoint
    missing: dict[str, str] = {}  # and the option that says it was trained
    for layer, target in product(range(base.spec.num_hidden_layers), TARGETS):
        modules = spellings(layer, target, base.model_type)
        if any(_is_adapted(matcher, config, module) for module in modules):
            ends = {_FIRST_PART[config["peft_type"]]: "target_modules"}
            if config.get("bias") == "lora_only" and any(f"{module}.bias" in own.tensors for module in modules):
                ends[".bias"] = "bias = 'lora_only'"
            lacking = (end for end in ends if not any(module + end in have for module in modules))
            missing |= {modules[0] + end: ends[end] for end in lacking}
    kept = tuple(_listed(config, "modules_to_save"))
    for tensor in (*base.head_names, *(f"{encoder_of(base.model_type)}.{name}" for name in own.module.state_dict())):
        inside = accumulate(tensor.split(".")[:-1], "{}.{}".format)
        if tensor not in have and any(module.endswith(kept) for module in inside):
            missing[tensor] = "modules_to_save"
    if missing:
        first, option = min(missing.items())
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InvalidBundle(
            f"{first}{more}: not in the adapter's file, though {option} says that it was trained; save the adapter "
            "again, whole"
        )


def is_chosen(matcher: Matcher, module: str, config: Mapping[str, Any], option: str, before: str = ".") -> bool:
    """PEFT's rule of an option that names modules: one expression of the whole name, or a list of ends of it."""
    if isinstance(given := config.get(option), str):
        return matcher.matches(f"{CONFIG_FILE}: {option}", given, module)
    return any(module == end or module.endswith(before + end) for end in _listed(config, option))


def _listed(config: Mapping[str, Any], option: str) -> list[str]:
    given = config.get(option) or []
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise InvalidBundle(f"{CONFIG_FILE}: {option}: expected a list of names, got {str(given)[:40]}")
    if len(given) > _MOST.get(option, MAX_NAMES):
        raise InvalidBundle(f"{CONFIG_FILE}: {option}: {len(given):,} names, over {_MOST.get(option, MAX_NAMES):,}")
    return given


def _is_adapted(matcher: Matcher, config: Mapping[str, Any], module: str) -> bool:
    if not is_chosen(matcher, module, config, "target_modules"):
        return False
    if is_chosen(matcher, module, config, "exclude_modules"):
        return False
    option, kept = f"{CONFIG_FILE}: modules_to_save", _listed(config, "modules_to_save")
    if any(matcher.matches(option, name, module, r"(?:.*\.)?", r"(?:\..*)?") for name in kept):
        return False
    layers, numbered = config.get("layers_to_transform"), re.search(r"\.(\d+)\.", module)
    if layers in (None, []) or numbered is None or isinstance(config["target_modules"], str):
        return True
    return int(numbered[1]) in (layers if isinstance(layers, list) else [layers])
