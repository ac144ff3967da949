"""A directory that PEFT saved -> a bundle: LoRA, DoRA and IA3 on AST and wav2vec 2.0's kin, exactly or not at all."""

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from service.errors import InvalidBundle
from service.exchange.base import Base, head_of
from service.exchange.expressions import Matcher
from service.exchange.modules import (
    MAX_NAMES,
    check_class,
    check_complete,
    check_prefix,
    encoder_of,
    in_float32,
    is_chosen,
    target_of,
)
from service.model.checkpoint import HEADS, published_tensors
from service.model.classifier import class_names
from service.registry.bundle import LENGTH_BYTES, WEIGHTS_FILE, check_header_length
from service.registry.manifest import CONFIG_FILE, MAX_CONFIG_BYTES
from service.registry.strict_json import parse_object

_log = logging.getLogger(__name__)

# Options that are read, that tensors tell, or that do not change what is computed; any other that is set is refused.
_KNOWN = {
    *("alpha_pattern", "bias", "feedforward_modules", "lora_alpha", "r", "rank_pattern", "use_dora", "use_rslora"),
    *("exclude_modules", "layers_pattern", "layers_to_transform", "modules_to_save", "target_modules"),
    *("auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "inference_mode", "init_ia3_weights"),
    *("init_lora_weights", "lora_dropout", "megatron_core", "peft_type", "peft_version", "qalora_group_size"),
    *("revision", "task_type", "eva_config", "runtime_config", "labels", "window_frames"),
}
_FEW = 2**24  # numbers that an adapter may have over its base's
_TOO_LARGE = 10**9  # of a rank and an alpha
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # of weights: the base is as it was
_PREFIX = re.compile(r"^(?:base_model\.model\.)+")
_SAVED_COPY = re.compile(r"\.modules_to_save\.\w+\.")
_PARTS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}


def kind_of(directory: Path) -> str:
    """`peft_type` of the adapter in a directory, `IPET` of a bundle; empty without any."""
    return str(read_config(directory).get("peft_type")) if (directory / CONFIG_FILE).is_file() else ""


def check_room(out: Path, kind: str | None = None) -> None:
    """Raise InvalidBundle where a directory is in use, unless by an adapter of a kind, which may be written over."""
    if out.is_dir() and any(out.iterdir()) and kind_of(out) != kind:
        over = ", or holds an older bundle" if kind else ""
        raise InvalidBundle(f"{out.name} holds other files; give another --out, which is new or empty{over}")


def read_config(directory: Path) -> dict[str, Any]:
    """`adapter_config.json`. Raises InvalidBundle."""
    try:
        return parse_object((directory / CONFIG_FILE).read_bytes(), CONFIG_FILE, MAX_CONFIG_BYTES)
    except OSError as error:
        raise InvalidBundle(f"{CONFIG_FILE} cannot be read: {error}") from None


def read_peft(
    directory: Path, config: Mapping[str, Any], base: Base, labels: Sequence[str] | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The manifest's fields of parts and task, and the tensors, of what PEFT saved with a config.

    Raises:
        InvalidBundle: names what cannot be exact, and what would work.
    """
    _check_options(config)
    classifies = _check_model(config, base)
    saved = _renamed(_PREFIX, "", _read_tensors(directory, base))
    heads = {name: t for name, t in saved.items() if name.startswith(HEADS) and ".original_module." not in name}
    heads = _renamed(_SAVED_COPY, ".", heads)
    body = {name: tensor for name, tensor in saved.items() if not name.startswith(HEADS)}
    for name in body:
        check_prefix(name, base.model_type)
    fields, tensors = head_of(base, heads, labels, classifies=classifies)
    matcher = Matcher()
    parts, more = (_read_lora if config["peft_type"] == "LORA" else _read_ia3)(matcher, config, body, base)
    check_complete(matcher, config, saved | heads, base)
    if not more:
        raise InvalidBundle(f"{WEIGHTS_FILE}: holds no tensor of {config['peft_type']}")
    return fields | parts, tensors | more


def _renamed(pattern: re.Pattern[str], short: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in float32 under shorter names. Raises InvalidBundle where two become one, or one has no fractions."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        _add(renamed, pattern.sub(short, name), in_float32(name, tensor), name)
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
        if value and name not in _KNOWN:
            raise InvalidBundle(f"{name[:40]} = {str(value)[:40]} is not served; train without it")


def _check_model(config: Mapping[str, Any], base: Base) -> bool:
    """Whether a classifier was trained; warn where its name is another than the base's.

    Raises:
        InvalidBundle: it was of another architecture.
    """
    mapping = config.get("auto_mapping")
    trained = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    check_class(trained, base.model_type)
    trained_on, revision = config.get("base_model_name_or_path"), config.get("revision")
    if trained_on and str(trained_on) not in (base.name, str(Path(base.name).resolve())):
        _log.warning("the adapter was trained on %s, and the base is %s: be sure they are one", trained_on, base.name)
    if revision:
        _log.warning("the adapter was trained on revision %s of its base: be sure %s is that", revision, base.name)
    return bool(config.get("task_type") == "SEQ_CLS" or trained == class_names(base.model_type)[1])


def _read_tensors(directory: Path, base: Base) -> dict[str, Tensor]:
    path = directory / WEIGHTS_FILE
    if not path.is_file():
        other = (
            "; a pickled adapter_model.bin is not read, save it with safe_serialization"
            if any(directory.glob("*.bin"))
            else ""
        )
        raise InvalidBundle(f"{WEIGHTS_FILE} is missing in {directory.name}{other}")
    most = _FEW + sum(tensor.numel() for tensor in base.checkpoint.tensors.values())
    try:
        with path.open("rb") as file:
            check_header_length(file.read(LENGTH_BYTES))
        with safe_open(path, framework="pt") as mapped:  # reads the header alone
            numbers = sum(math.prod(mapped.get_slice(name).get_shape()) for name in list(mapped.keys()))
        if numbers > most:
            raise InvalidBundle(f"{WEIGHTS_FILE}: holds {numbers:,} numbers; at most {most:,} are read on this base")
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InvalidBundle(f"{WEIGHTS_FILE} is not a valid safetensors file: {error}") from None


def _read_lora(
    matcher: Matcher, config: Mapping[str, Any], saved: Mapping[str, Tensor], base: Base
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    patterns: dict[str, dict[str, float]] = {"rank_pattern": {}, "alpha_pattern": {}}
    usual = {"rank_pattern": _number(config, "r"), "alpha_pattern": _number(config, "lora_alpha")}
    value_of = {name: _pattern(matcher, config, name, default) for name, default in usual.items()}
    modules = [name.removesuffix(end) for name in saved for end in _PARTS if name.endswith(end)]
    for module in modules:  # before a pattern is matched: they are few then, and short
        _target(module, "LoRA", base)
    ranks = {value_of["rank_pattern"](module) for module in modules}
    if ranks and usual["rank_pattern"] not in ranks:  # which no map has, and may be over the limit
        usual["rank_pattern"] = max(ranks)
    for name, tensor in saved.items():
        end = next((end for end in _PARTS if name.endswith(end)), None)
        if end is None:
            for ours, bias in _read_bias(name, tensor, base, config.get("bias")).items():
                _add(tensors, ours, bias, name)
            continue
        module = name.removesuffix(end)
        layer, target = _target(module, "LoRA", base)
        _add(tensors, f"layers.{layer}.lora.{target}.{_PARTS[end]}", tensor, name)
        for pattern, of in value_of.items():
            if (value := of(module)) != usual[pattern]:
                patterns[pattern][f"{layer}.{target}"] = int(value) if pattern == "rank_pattern" else value
    lora: dict[str, Any] = {"r": int(usual["rank_pattern"]), "alpha": usual["alpha_pattern"]}
    lora |= {name: found for name, found in patterns.items() if found}
    lora |= {ours: True for theirs, ours in (("use_rslora", "rslora"), ("use_dora", "dora")) if config.get(theirs)}
    return {"lora": lora}, tensors


def _read_ia3(
    matcher: Matcher, config: Mapping[str, Any], saved: Mapping[str, Tensor], base: Base
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
        feeds = tensor.shape[0] == 1
        if config.get("feedforward_modules") is not None and feeds != is_chosen(
            matcher, name.removesuffix(".ia3_l"), config, "feedforward_modules", before=""
        ):
            raise InvalidBundle(
                f"{WEIGHTS_FILE}: {name}: a {'row' if feeds else 'column'}, which feedforward_modules contradicts: "
                "a module has a row if it is among them, else a column"
            )
        sides["input" if feeds else "output"].add(target)
        _add(tensors, f"layers.{layer}.ia3.{target}", tensor.flatten(), name)
    for name, tensor in list(tensors.items()):  # ones, which change nothing, in layers that have no vector
        target = name.rpartition(".")[2]
        for layer in range(base.spec.num_hidden_layers):
            tensors.setdefault(f"layers.{layer}.ia3.{target}", torch.ones_like(tensor))
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
    bare = f"{module}.bias".removeprefix(f"{encoder_of(base.model_type)}.")
    published = published_tensors(base.model_type, {bare: tensor})
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
    if not _is_number(value) or (name == "r" and type(value) is not int):
        raise InvalidBundle(f"{CONFIG_FILE}: {name}: expected a number, got {str(value)[:40]!r}")
    return float(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and abs(value) < _TOO_LARGE


def _pattern(matcher: Matcher, config: Mapping[str, Any], name: str, default: float) -> Callable[[str], float]:
    """What PEFT takes for a module: the first key that, as a regular expression, ends its name."""
    pattern = config.get(name) or {}
    if not isinstance(pattern, dict) or not all(map(_is_number, pattern.values())):
        raise InvalidBundle(f"{CONFIG_FILE}: {name}: expected an object of numbers, got {str(pattern)[:40]}")
    if len(pattern) > MAX_NAMES:
        raise InvalidBundle(f"{CONFIG_FILE}: {name}: {len(pattern):,} keys, over {MAX_NAMES:,}")
    option = f"{CONFIG_FILE}: {name}"

    @cache
    def of(module: str) -> float:
        found = (key for key in pattern if matcher.matches(option, key, module, r"(?:.*\.)?(?:", ")"))
        return next((float(pattern[key]) for key in found), default)

    return of
