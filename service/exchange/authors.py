"""A state dict in the naming of IPET's authors -> the parts of a bundle. Their scale and residual are the paper's."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from service.errors import InvalidBundle
from service.exchange.base import Base
from service.model.checkpoint import read_state

SCALE = 0.1  # of the paper's bottlenecks, where the state dict has none of its own
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_PROMPT = re.compile(r"(?:.*\.)?(?:embedding_prompt(\d+)|layers\.(\d+)\.embed_prompt)(?:\.weight)?")
_BOTTLENECK = re.compile(r"(?:.*\.)?(?:blocks|layers)\.(\d+)\.(?:adaptmlp|adapter)\.(down|up)(?:_proj)?\.(weight|bias)")
_SCALE = re.compile(r"(?:.*\.)?(?:blocks|layers)\.(\d+)\.(?:adaptmlp|adapter)\.scale")
_HEAD = re.compile(r"(?:.*\.)?mlp_head\w*(?:\.\d+)?\.(weight|bias)")
_BLOCKS = {  # of the authors' AST beside ours
    "attn.qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    "attn.proj": ("attention.output.dense",),
    "mlp.fc1": ("intermediate.dense",),
    "mlp.fc2": ("output.dense",),
    "norm1": ("layernorm_before",),
    "norm2": ("layernorm_after",),
}
_BLOCK = re.compile(r"v\.blocks\.(\d+)\.(.+)\.(weight|bias)")


def find_state(directory: Path) -> Path | None:
    """The one file of a directory that holds tensors."""
    found = [path for path in sorted(directory.iterdir()) if path.suffix in _SUFFIXES]
    return found[0] if len(found) == 1 else None


def read_authors(path: Path, base: Base, labels: Iterable[str] | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The manifest's fields of parts and task, and the tensors.

    Raises:
        InvalidBundle: another backbone's weights, tensors without a place, or labels that are not as many as classes.
    """
    state = {name.removeprefix("module."): t.float() for name, t in read_state(path).items() if isinstance(t, Tensor)}
    tensors: dict[str, Tensor] = {}
    scales: set[float] = set()
    for name, tensor in state.items():
        if found := _PROMPT.fullmatch(name):
            tensors[f"layers.{found[1] or found[2]}.prompt"] = tensor.reshape(-1, tensor.shape[-1])
        elif found := _BOTTLENECK.fullmatch(name):
            tensors[f"layers.{found[1]}.adapter.{found[2]}.{found[3]}"] = tensor
        elif _SCALE.fullmatch(name):
            scales.add(float(tensor))
        elif found := _HEAD.fullmatch(name):
            tensors[_head_name(name, found[1], state)] = tensor
        else:
            _check_frozen(name, tensor, base)
    if len(scales) > 1:
        raise InvalidBundle(f"the bottlenecks' scales differ from layer to layer ({sorted(scales)[:3]}); one is served")
    return _fields(tensors, scales.pop() if scales else SCALE, base, labels), tensors


def _fields(tensors: Mapping[str, Tensor], scale: float, base: Base, labels: Iterable[str] | None) -> dict[str, Any]:
    missing = [name for name in ("head.norm.weight", "head.linear.weight") if name not in tensors]
    if missing:
        raise InvalidBundle("mlp_head: expected a layer norm and a linear layer, as the authors' classifiers have them")
    classes, told = len(tensors["head.linear.weight"]), tuple(labels or base.around.labels)
    if len(told) != classes:
        raise InvalidBundle(
            f"mlp_head has {classes} classes, but there are {len(told)} labels; give a file of {classes}"
        )
    prompt, down = tensors.get("layers.0.prompt"), tensors.get("layers.0.adapter.down.weight")
    return {
        "task_type": "AUDIO_CLASSIFICATION",
        "labels": list(told),
        "activation": "sigmoid" if base.around.multi_label else "softmax",
        "prompt_length": 0 if prompt is None else len(prompt),
        "bottleneck_dim": 0 if down is None else len(down),
        "adapter_scale": scale,
        "adapter_residual": base.model_type.reads_samples,
    }


def _head_name(name: str, end: str, state: Mapping[str, Tensor]) -> str:
    """The norm's weight has one dimension, the linear layer's two."""
    weight = state.get(name.removesuffix(end) + "weight")
    return f"head.{'norm' if weight is not None and weight.dim() == 1 else 'linear'}.{end}"


def _check_frozen(name: str, tensor: Tensor, base: Base) -> None:
    """What is not the adapter's must be the frozen backbone's, and the base's own where it can be told."""
    own = base.checkpoint.tensors
    of_base: Tensor | None = own.get(name.partition(".")[2])
    if found := _BLOCK.fullmatch(name):
        names = [f"encoder.layer.{found[1]}.{part}.{found[3]}" for part in _BLOCKS.get(found[2], ())]
        of_base = torch.cat([own[part] for part in names]) if names and all(part in own for part in names) else None
    elif not name.startswith(("v.", "wav2vec2.")):
        raise InvalidBundle(f"{name[:100]}: neither an adapter's tensor in the authors' naming nor a backbone's")
    if of_base is not None and (of_base.shape != tensor.shape or not torch.allclose(of_base, tensor, atol=1e-6)):
        raise InvalidBundle(f"{name}: not the base's own; the adapter was trained on another backbone")
