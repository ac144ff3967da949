"""A Hugging Face checkpoint as plain tensors under its published names, and its fingerprint. Knows no forward."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from service.model.spec import ModelType

if TYPE_CHECKING:  # where they run they are imported by then: it takes seconds
    from transformers import PretrainedConfig

_WEIGHT_NORM = [
    (r"\.parametrizations\.weight\.original0$", ".weight_g"),
    (r"\.parametrizations\.weight\.original1$", ".weight_v"),
]

# Releases of transformers name the same tensors differently inside; files on disk keep the published names, and so do
# we. Each pattern turns a name inside some release into the published one.
_PUBLISHED_NAMES = {
    ModelType.AST: [
        (r"^layers\.", "encoder.layer."),
        (r"\.attention\.q_proj\.", ".attention.attention.query."),
        (r"\.attention\.k_proj\.", ".attention.attention.key."),
        (r"\.attention\.v_proj\.", ".attention.attention.value."),
        (r"\.attention\.o_proj\.", ".attention.output.dense."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
    ],
    ModelType.WAV2VEC2: _WEIGHT_NORM,
    ModelType.HUBERT: _WEIGHT_NORM,
    ModelType.WAVLM: _WEIGHT_NORM,
    ModelType.DATA2VEC: [],
}

HEADS = ("classifier.", "projector.", "layer_weights")  # names of a classifier's tensors outside its backbone

# In the file, but not read: by no forward without masking, or an adapter of the checkpoint's own (MMS).
_UNREAD = re.compile(r"masked_spec_embed|.+\.adapter_layer\..+|.+\.num_batches_tracked")

_WAV2VEC2_KEYS = (
    *("conv_kernel", "conv_stride", "do_stable_layer_norm", "feat_extract_activation", "feat_extract_norm"),
    *("hidden_act", "layer_norm_eps", "num_attention_heads"),
    *("num_conv_pos_embedding_groups", "num_conv_pos_embeddings"),
)

# Configuration values that change the forward, beside the tensors' shapes.
_FORWARD_KEYS = {
    ModelType.AST: (
        *("frequency_stride", "hidden_act", "layer_norm_eps", "max_length", "num_attention_heads", "num_mel_bins"),
        *("patch_size", "time_stride"),
    ),
    ModelType.WAV2VEC2: _WAV2VEC2_KEYS,
    ModelType.HUBERT: (*_WAV2VEC2_KEYS, "conv_pos_batch_norm", "feat_proj_layer_norm"),
    ModelType.DATA2VEC: (
        *("conv_kernel", "conv_pos_kernel_size", "conv_stride", "feat_extract_activation", "hidden_act"),
        *("layer_norm_eps", "num_attention_heads", "num_conv_pos_embedding_groups", "num_conv_pos_embeddings"),
    ),
    ModelType.WAVLM: (*_WAV2VEC2_KEYS, "max_bucket_distance", "num_buckets"),
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A frozen backbone as loaded: its module, and its tensors in float32 under their published names.

    Args:
        head: tensors of a classifier's head by their names there, as far as the files have them and were asked for.
    """

    model_type: ModelType
    config: "PretrainedConfig"
    module: nn.Module
    tensors: dict[str, Tensor]
    head: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors.values())

    def fingerprint(self) -> str:
        """`sha256:...` over the tensors that the forward reads and the configuration that changes it.

        Sorted by published name, each as name, shape and float32 bytes; then the configuration values as JSON with
        sorted keys. Name and shape are UTF-8 with a line feed after each, the shape as in `[768, 3072]`.
        """
        hasher = hashlib.sha256()
        for name in sorted(self.tensors):
            tensor = self.tensors[name].contiguous()
            hasher.update(f"{name}\n{list(tensor.shape)}\n".encode())
            hasher.update(tensor.view(-1).numpy().tobytes())
        values = {key: getattr(self.config, key) for key in _FORWARD_KEYS[self.model_type]}
        hasher.update(json.dumps(values, sort_keys=True).encode())
        return f"sha256:{hasher.hexdigest()}"


def read_config(name: str) -> "PretrainedConfig":
    """The configuration of a directory or Hub id.

    Raises:
        ValueError: an adapter lies beside it, which transformers would put into the model unasked.
        OSError: there is no such directory or Hub id.
    """
    from transformers import AutoConfig
    from transformers.utils import find_adapter_config_file

    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise FileNotFoundError(f"backbone {name!r}: there is no such directory")
    config: PretrainedConfig = AutoConfig.from_pretrained(name)
    if find_adapter_config_file(name) is not None:
        raise ValueError(f"backbone {name!r} holds an adapter_config.json too; name a directory of the model alone")
    return config


def load_checkpoint(name: str, *, with_head: bool = False) -> Checkpoint:
    """Loads a Hugging Face directory or Hub id, on the CPU in float32; no file of it can run anything.

    Args:
        with_head: as a classifier, whose head is read too where the files have one.

    Raises:
        ValueError: the model is of another architecture, its file lacks tensors that the forward reads, has them in
            another shape than its config says, or cannot be read safely, or as `read_config`.
        OSError: there is no such directory or Hub id.
    """
    from transformers import AutoModel, AutoModelForAudioClassification
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    config = read_config(name)
    try:
        model_type = ModelType(config.model_type)
    except ValueError:
        supported = ", ".join(ModelType)
        raise ValueError(f"backbone {name!r} has model_type {config.model_type!r}; supported are {supported}") from None
    if Path(name).is_dir():
        disable_progress_bar()  # nothing is downloaded: it would only flicker over the log
    set_verbosity_error()  # its report of tensors is judged below, and calls a classifier's head unexpected
    try:
        model, info = _read_model(name, config, AutoModelForAudioClassification if with_head else AutoModel)
    except Exception as error:
        if not _is_of_pickle(error):
            raise
        raise _unsafe(f"backbone {name!r}", error) from None
    for key, found, told in sorted(info["mismatched_keys"]):
        raise ValueError(f"{name!r}: {key} is {list(found)} in its files, and {list(told)} by its config.json")
    module, absent = model.base_model, {key.removeprefix(f"{model.base_model_prefix}.") for key in info["missing_keys"]}
    missing = sorted(key for key in absent if not (_UNREAD.fullmatch(key) or (with_head and key.startswith(HEADS))))
    if missing:
        raise ValueError(f"backbone {name!r} lacks tensors: {missing[:5]}")
    module.eval().requires_grad_(False)
    head = {key: t for key, t in model.state_dict().items() if key.startswith(HEADS) and key not in absent}
    return Checkpoint(model_type, config, module, published_tensors(model_type, module.state_dict()), head)


def read_state(path: Path) -> dict[str, Tensor]:
    """A file's tensors, safetensors or torch's own read for weights alone, which runs nothing. Raises ValueError."""
    from transformers.modeling_utils import load_state_dict

    try:
        state: dict[str, Tensor] = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # whatever a file can make the two readers raise, UnpicklingError among it
        raise _unsafe(path.name, error) from None
    return state


def _is_of_pickle(error: Exception) -> bool:
    return type(error).__name__ == "UnpicklingError"  # by name, so that nothing here imports what runs


def _unsafe(what: str, error: Exception) -> ValueError:
    """In our words where torch refused a pickle, as its own advise to run it."""
    why = "it is a pickle of more than tensors; save it as safetensors" if _is_of_pickle(error) else str(error)[:200]
    return ValueError(f"{what} holds no tensors that can be read safely: {why}")


def _read_model(name: str, config: "PretrainedConfig", kind: Any) -> tuple[Any, dict[str, Any]]:
    """The checkpoint's model, of an automatic class of transformers, and what that says of its loading.

    From safetensors; where a repository has none, by torch's loader of weights alone, which runs nothing of the file.
    """
    read: dict[str, Any] = {"config": config, "dtype": torch.float32, "output_loading_info": True}
    read["ignore_mismatched_sizes"] = True  # they are judged by the caller
    loaded: tuple[Any, dict[str, Any]]
    try:
        loaded = kind.from_pretrained(name, use_safetensors=True, **read)
    except OSError:
        os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")  # which would ask the Hub to convert the file
        loaded = kind.from_pretrained(name, weights_only=True, **read)
    return loaded


def published_tensors(model_type: ModelType, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A module's state under the names that published checkpoints use, without what the forward never reads."""
    tensors = {}
    for name, tensor in state.items():
        for pattern, published in _PUBLISHED_NAMES[model_type]:
            name = re.sub(pattern, published, name)
        if not _UNREAD.fullmatch(name):
            tensors[name] = tensor
    return tensors


def save_checkpoint(checkpoint: Checkpoint, directory: Path) -> None:
    """Write a checkpoint's tensors as a Hugging Face directory, safetensors in float32."""
    state = {}
    for name, tensor in checkpoint.module.state_dict().items():
        (published_name,) = published_tensors(checkpoint.model_type, {name: tensor}) or (name,)
        state[name] = checkpoint.tensors.get(published_name, tensor).detach().to("cpu", torch.float32).contiguous()
    module: Any = checkpoint.module
    module.save_pretrained(directory, state_dict=state)
