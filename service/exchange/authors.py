"""A state dict in the naming of IPET's authors -> the parts of a bundle. Their scale and residual are the paper's."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from service.errors import InvalidBundle
from service.exchange.base import Base, task_of
from service.exchange.modules import check_prefix, encoder_of, in_float32
from service.model.checkpoint import published_tensors, read_state

SCALE = 0.1  # of the paper's bottlenecks, where the state dict has none of its own
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_LAYER = r"(?:\w+\.)?(?:encoder\.)?(?:blocks|layers)\.(\d+)\."
_PROMPT = re.compile(rf"(?:(?:\w+\.)?embedding_prompt(\d+)|{_LAYER}embed_prompt)(?:\.weight)?")
_BOTTLENECK = re.compile(rf"{_LAYER}(?:adaptmlp|adapter)\.(down|up)(?:_proj)?\.(weight|bias)")
_SCALE = re.compile(rf"{_LAYER}(?:adaptmlp|adapter)\.scale")
_HEAD = re.compile(r"mlp_head\w*(?:\.\d+)?\.(weight|bias)")
_AROUND = {  # of the authors' AST beside ours
    "v.cls_token": "embeddings.cls_token",
    "v.dist_token": "embeddings.distillation_token",
    "v.pos_embed": "embeddings.position_embeddings",
    "v.patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "v.patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "v.norm.weight": "layernorm.weight",
    "v.norm.bias": "layernorm.bias",
}
# In the file, and read by no forward: the heads of the image model that AST began as, and the mask of pretraining.
_UNREAD = re.compile(r"v\.head(?:_dist)?\.(?:weight|bias)|(?:\w+\.)?masked_spec_embed")
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
    state = _state_of(path)
    tensors: dict[str, Tensor] = {}
    scales: dict[str, float] = {}
    for name, tensor in state.items():
        check_prefix(name, base.model_type)
        if base.model_type.reads_samples and name.startswith(("v.", "blocks.")):
            raise InvalidBundle(f"{name[:100]}: of an AST, and the base is {base.model_type}")
        ours = _name_of(name, tensor, state)
        if ours is not None:
            if ours in tensors:
                raise InvalidBundle(f"{name[:100]}: a second tensor for {ours}, which has one; leave one of them out")
            tensors[ours] = tensor[0] if ours.endswith(".prompt") and tensor.shape[:-2] == (1,) else tensor
        elif found := _SCALE.fullmatch(name):
            if tensor.numel() != 1:
                raise InvalidBundle(f"{name[:100]}: expected one number, got {list(tensor.shape)}")
            scales[found[1]] = float(tensor)
        else:
            _check_frozen(name, tensor, base)
    return _fields(tensors, _scale_of(scales, tensors), base, labels), tensors


def _state_of(path: Path) -> dict[str, Tensor]:
    """A file's tensors in float32 without what a parallel trainer put before their names."""
    read: Any = read_state(path)
    others = [name for name, value in read.items() if not isinstance(value, Tensor)] if isinstance(read, dict) else []
    if not isinstance(read, dict) or others:
        what = str((others or ["its content"])[0])[:60]
        raise InvalidBundle(f"{path.name}: {what}: not a tensor; save the model's state_dict() alone")
    state = {str(name).removeprefix("module."): in_float32(str(name), tensor) for name, tensor in read.items()}
    if len(state) != len(read):
        raise InvalidBundle(f"{path.name}: tensors with and without module. before the same name")
    return state


def _name_of(name: str, tensor: Tensor, state: Mapping[str, Tensor]) -> str | None:
    """Our name of an adapter's or a head's tensor; None for any other."""
    if (found := _PROMPT.fullmatch(name)) and tensor.dim():
        return f"layers.{found[1] or found[2]}.prompt"
    if found := _BOTTLENECK.fullmatch(name):
        return f"layers.{found[1]}.adapter.{found[2]}.{found[3]}"
    if found := _HEAD.fullmatch(name):
        weight = state.get(name.removesuffix(found[1]) + "weight")  # [E] of the norm, [C, E] of the linear layer
        return f"head.{'norm' if weight is not None and weight.dim() == 1 else 'linear'}.{found[1]}"
    return None


def _scale_of(scales: Mapping[str, float], tensors: Mapping[str, Tensor]) -> float:
    """The one scale of all bottlenecks; those that do not say theirs have the paper's."""
    layers = {name.split(".")[1] for name in tensors if ".adapter." in name}
    found = {scales.get(layer, SCALE) for layer in layers | scales.keys()} or {SCALE}
    if len(found) > 1:
        raise InvalidBundle(f"the bottlenecks' scales differ from layer to layer ({sorted(found)[:3]}); one is served")
    return found.pop()


def _fields(tensors: Mapping[str, Tensor], scale: float, base: Base, labels: Iterable[str] | None) -> dict[str, Any]:
    linear = tensors.get("head.linear.weight")
    if linear is None or not linear.dim() or "head.norm.weight" not in tensors:
        raise InvalidBundle("mlp_head: expected a layer norm and a linear layer, as the authors' classifiers have them")
    prompt, down = tensors.get("layers.0.prompt"), tensors.get("layers.0.adapter.down.weight")
    return {
        **task_of(base, len(linear), labels, "mlp_head"),
        "prompt_length": 0 if prompt is None else len(prompt),
        "bottleneck_dim": 0 if down is None else len(down),
        "adapter_scale": scale,
        "adapter_residual": base.model_type.reads_samples,
    }


def _check_frozen(name: str, tensor: Tensor, base: Base) -> None:
    """What is not the adapter's must be the frozen backbone's, and the base's own where it can be told."""
    if _UNREAD.fullmatch(name):
        return
    own, names = base.checkpoint.tensors, [_AROUND.get(name, "")]
    if base.model_type.reads_samples:
        _, _, bare = name.partition(f"{encoder_of(base.model_type)}.")
        names = list(published_tensors(base.model_type, {bare: tensor})) or [""]
    elif found := _BLOCK.fullmatch(name):
        names = [f"encoder.layer.{found[1]}.{part}.{found[3]}" for part in _BLOCKS.get(found[2], ("",))]
    if not all(part in own for part in names):
        raise InvalidBundle(
            f"{name[:100]}: neither an adapter's tensor in the authors' naming nor the base's own; it has no place here"
        )
    of_base = torch.cat([own[part] for part in names]) if len(names) > 1 else own[names[0]]
    if of_base.shape != tensor.shape or not torch.allclose(of_base, tensor, atol=1e-6):
        raise InvalidBundle(f"{name}: not the base's own; the adapter was trained on another backbone")
