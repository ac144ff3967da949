"""A directory that PEFT saved -> a bundle: LoRA, DoRA and IA3 on AST and wav2vec 2.0's kin, exactly or not at all."""

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from service.errors import InvalidBundle
from service.exchange.base import Base, head_of
from service.exchange.modules import check_class, check_prefix, target_of
from service.model.checkpoint import published_tensors
from service.model.classifier import HEADS
from service.registry.manifest import CONFIG_FILE
from service.registry.tensor_header import WEIGHTS_FILE

_log = logging.getLogger(__name__)

# Options that do not change what is computed, or that the tensors tell; a set option that is not here is refused.
_READ = {"alpha_pattern", "bias", "feedforward_modules", "lora_alpha", "r", "rank_pattern", "use_dora", "use_rslora"}
_TOLD_BY_TENSORS = {"exclude_modules", "layers_pattern", "layers_to_transform", "modules_to_save", "target_modules"}
_WITHOUT_EFFECT = {
    *("auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "inference_mode", "init_ia3_weights"),
    *("init_lora_weights", "lora_dropout", "megatron_core", "peft_type", "peft_version", "qalora_group_size"),
    *("revision", "task_type", "eva_config", "runtime_config"),
}
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # of weights: the base is as it was
_PREFIX = re.compile(r"^(?:base_model\.model\.)+")
_SAVED_COPY = re.compile(r"\.modules_to_save\.\w+\.")
_PARTS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}


def is_peft(directory: Path) -> bool:
    """Whether a directory holds what PEFT saves."""
    return (directory / CONFIG_FILE).is_file() and read_config(directory).get("peft_type") != "IPET"


def read_config(directory: Path) -> dict[str, Any]:
    """`adapter_config.json`. Raises InvalidBundle."""
    try:
        config: Any = json.loads((directory / CONFIG_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidBundle(f"{CONFIG_FILE} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise InvalidBundle(f"{CONFIG_FILE}: expected an object, got {str(config)[:40]}")
    return config


def read_peft(directory: Path, base: Base, labels: Sequence[str] | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The manifest's fields of parts and task, and the tensors, of what PEFT saved.

    Raises:
        InvalidBundle: names what cannot be exact, and what would work.
    """
    config = read_config(directory)
    _check_options(config)
    _check_model(config, base)
    saved = _renamed(_PREFIX, "", _read_tensors(directory))
    heads = {name: t for name, t in saved.items() if name.startswith(HEADS) and ".original_module." not in name}
    heads = _renamed(_SAVED_COPY, ".", heads)
    body = {name: tensor for name, tensor in saved.items() if not name.startswith(HEADS)}
    for name in body:
        check_prefix(name, base.model_type)
    fields, tensors = head_of(base, heads, labels)
    parts, more = (_read_lora if config["peft_type"] == "LORA" else _read_ia3)(config, body, base)
    return fields | parts, tensors | more


def _renamed(pattern: re.Pattern[str], short: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in float32 under shorter names. Raises InvalidBundle where two become one."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        _add(renamed, pattern.sub(short, name), tensor.float(), name)
    return renamed


def _add(tensors: dict[str, Tensor], ours: str, tensor: Tensor, theirs: str) -> None:
    if ours in tensors:
        raise InvalidBundle(f"{WEIGHTS_FILE}: {theirs[:100]}: a second tensor for {ours[:100]}; leave one of them out")
    tensors[ours] = tensor


def _check_options(config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind == "PREFIX_TUNING":
        raise InvalidBundle(
            "PREFIX_TUNING cannot be read: PEFT itself cannot run it on these encoders; train one with "
            "`ipet train --method prefix`"
        )
    if kind not in ("LORA", "IA3"):
        raise InvalidBundle(f"peft_type: expected LORA or IA3, got {str(kind)[:40]}")
    start = config.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise InvalidBundle(
            f"init_lora_weights {str(start)[:40]!r} changes the base's own weights; save the adapter converted to LoRA "
            "(PEFT's path_initial_model_for_weight_conversion)"
        )
    for name, value in config.items():
        if value and name not in _READ | _TOLD_BY_TENSORS | _WITHOUT_EFFECT:
            raise InvalidBundle(f"{name[:40]} = {str(value)[:40]} is not served; train without it")


def _check_model(config: Mapping[str, Any], base: Base) -> None:
    """Raise InvalidBundle where another architecture was trained on; warn where the name is another than the base's."""
    mapping = config.get("auto_mapping")
    if isinstance(mapping, dict):
        check_class(mapping.get("base_model_class"), base.model_type)
    trained_on, revision = config.get("base_model_name_or_path"), config.get("revision")
    if trained_on and str(trained_on) not in (base.name, str(Path(base.name).resolve())):
        _log.warning("the adapter was trained on %s, and the base is %s: be sure they are one", trained_on, base.name)
    if revision:
        _log.warning("the adapter was trained on revision %s of its base: be sure %s is that", revision, base.name)


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    path = directory / WEIGHTS_FILE
    if not path.is_file():
        other = (
            "; a pickled adapter_model.bin is not read, save it with safe_serialization"
            if any(directory.glob("*.bin"))
            else ""
        )
        raise InvalidBundle(f"{WEIGHTS_FILE} is missing in {directory.name}{other}")
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InvalidBundle(f"{WEIGHTS_FILE} is not a valid safetensors file: {error}") from None


def _read_lora(
    config: Mapping[str, Any], saved: Mapping[str, Tensor], base: Base
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    r, usual = int(_number(config, "r")), _number(config, "lora_alpha")
    rank_of = _pattern(config, "rank_pattern", r)
    alpha_of = _pattern(config, "alpha_pattern", usual)
    for name, tensor in saved.items():
        end = next((end for end in _PARTS if name.endswith(end)), None)
        if end is None:
            for ours, bias in _read_bias(name, tensor, base, config.get("bias")).items():
                _add(tensors, ours, bias, name)
            continue
        module = name.removesuffix(end)
        layer, target = _target(module, "LoRA", base)
        _add(tensors, f"layers.{layer}.lora.{target}.{_PARTS[end]}", tensor, name)
        key = f"{layer}.{target}"
        rank, alpha = int(rank_of(module)), float(alpha_of(module))
        ranks |= {} if rank == r else {key: rank}
        alphas |= {} if alpha == usual else {key: alpha}
    lora: dict[str, Any] = {"r": r, "alpha": float(usual)}
    lora |= {"rank_pattern": ranks} if ranks else {}
    lora |= {"alpha_pattern": alphas} if alphas else {}
    lora |= {ours: True for theirs, ours in (("use_rslora", "rslora"), ("use_dora", "dora")) if config.get(theirs)}
    return {"lora": lora}, tensors


def _read_ia3(
    config: Mapping[str, Any], saved: Mapping[str, Tensor], base: Base
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    sides: dict[str, set[str]] = {"output": set(), "input": set()}
    for name, tensor in saved.items():
        if not name.endswith(".ia3_l"):
            raise InvalidBundle(f"{WEIGHTS_FILE}: {name}: not a vector of IA3")
        layer, target = _target(name.removesuffix(".ia3_l"), "IA3", base)
        if tensor.dim() != 2:
            raise InvalidBundle(f"{WEIGHTS_FILE}: {name}: expected a row or a column, got {list(tensor.shape)}")
        # A feed-forward module's vector scales its input and is a row.
        sides["input" if tensor.shape[0] == 1 else "output"].add(target)
        _add(tensors, f"layers.{layer}.ia3.{target}", tensor.flatten(), name)
    for target in sides["output"] | sides["input"]:
        lacking = [i for i in range(base.spec.num_hidden_layers) if f"layers.{i}.ia3.{target}" not in tensors]
        for layer in lacking:  # ones change nothing
            like = next(tensor for name, tensor in tensors.items() if name.endswith(f".ia3.{target}"))
            tensors[f"layers.{layer}.ia3.{target}"] = like.new_ones(like.shape)
    return {"ia3": {side: sorted(targets) for side, targets in sides.items()}}, tensors


def _target(module: str, what: str, base: Base) -> tuple[int, str]:
    found = target_of(module, base.model_type)
    if found is None or found[0] >= base.spec.num_hidden_layers:
        raise InvalidBundle(
            f"{what} on {module[:100]}: not a linear map of one of the {base.spec.num_hidden_layers} layers of "
            f"{base.model_type}; target the attention and the feed-forward only, and the head by modules_to_save"
        )
    return found


def _read_bias(name: str, tensor: Tensor, base: Base, told: object) -> dict[str, Tensor]:
    """A saved bias as what it adds to the base's; of other modules than a layer's maps it must be the base's own."""
    module, own = name.removesuffix(".bias").removesuffix(".base_layer"), base.checkpoint.tensors
    published = published_tensors(base.model_type, {f"{module}.bias".partition(".")[2]: tensor})
    of_base = own.get(next(iter(published), ""))
    if name.endswith(".bias") and of_base is not None and of_base.shape == tensor.shape:
        found = target_of(module, base.model_type)
        if found is not None:
            return {f"layers.{found[0]}.bias.{found[1]}": tensor - of_base}
        if bool((of_base == tensor).all()):
            return {}
    how = "bias = 'all' trains every bias of the model; " if told == "all" else ""
    raise InvalidBundle(
        f"{WEIGHTS_FILE}: {name}: {how}only the biases of the layers' linear maps may be trained: train with "
        "bias='lora_only'"
    )


def _number(config: Mapping[str, Any], name: str) -> float:
    """An option's value, or what PEFT takes where its file does not say."""
    value = config.get(name, 8)
    if type(value) not in (int, float) or (name == "r" and type(value) is not int):
        raise InvalidBundle(f"{CONFIG_FILE}: {name}: expected a number, got {str(value)[:40]!r}")
    return float(value) if name != "r" else value


def _pattern(config: Mapping[str, Any], name: str, default: float) -> Callable[[str], float]:
    """What PEFT takes for a module: the first key that, as a regular expression, ends its name."""
    pattern = config.get(name) or {}
    if not isinstance(pattern, dict) or not all(type(value) in (int, float) for value in pattern.values()):
        raise InvalidBundle(f"{CONFIG_FILE}: {name}: expected an object of numbers, got {str(pattern)[:40]}")

    def of(module: str) -> float:
        for key, value in pattern.items():
            try:
                if re.match(rf"(.*\.)?({key})$", module):
                    return float(value)
            except re.error as error:
                raise InvalidBundle(f"a pattern's key {key[:40]!r} is no regular expression: {error}") from None
        return default

    return of
