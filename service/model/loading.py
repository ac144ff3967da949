"""From a directory, Hub id or `embedded` to a frozen backbone on a device."""

import torch

from service.model.backbone import Backbone
from service.model.backbones.ast import ASTBackbone
from service.model.backbones.data2vec_audio import Data2VecAudioBackbone
from service.model.backbones.hubert import HubertBackbone
from service.model.backbones.wav2vec2 import Wav2Vec2Backbone
from service.model.backbones.wavlm import WavLMBackbone
from service.model.checkpoint import Checkpoint, load_checkpoint
from service.model.kernels import PLAIN, Kernels, Weights, pick_kernels
from service.model.precision import pick_device, pick_dtype, use_true_float32
from service.model.spec import EMBEDDED_DIRECTORY, BackboneSpec, ModelType

ARCHITECTURES: dict[ModelType, type[Backbone]] = {
    ModelType.AST: ASTBackbone,
    ModelType.WAV2VEC2: Wav2Vec2Backbone,
    ModelType.HUBERT: HubertBackbone,
    ModelType.DATA2VEC: Data2VecAudioBackbone,
    ModelType.WAVLM: WavLMBackbone,
}


@torch.no_grad()
def load_backbone(
    name: str = "embedded",
    device: str = "auto",
    dtype: str = "auto",
    *,
    for_inference: bool = False,
    weights: Weights = "auto",
) -> Backbone:
    """Loads and freezes a backbone.

    Args:
        name: Hugging Face directory or Hub id, or `embedded` for the one that ships with the package.
        device: `auto`, `cpu` or `cuda`.
        dtype: `auto`, `float32`, `bfloat16` or `float16`; `float32` gives the reference answers.
        for_inference: takes the device's fastest kernels, through which no gradient passes.
        weights: `int8` quantises the backbone's linear layers (on CPUs, for inference); `auto` keeps them in `dtype`.

    Raises:
        ValueError: the checkpoint is of an unsupported kind, or the device or its int8 is not there.
        OSError: there is no such directory or Hub id.
    """
    checkpoint = load_backbone_checkpoint(name)
    where = pick_device(device)
    precision = pick_dtype(dtype, where)
    use_true_float32(where, precision)
    kernels = pick_kernels(where, precision, weights) if for_inference else PLAIN
    return build_backbone(checkpoint, describe(checkpoint, name), where, precision, kernels)


def load_backbone_checkpoint(name: str, *, with_head: bool = False) -> Checkpoint:
    """The checkpoint of a directory, a Hub id or `embedded`; raises as `load_backbone`."""
    return load_checkpoint(str(EMBEDDED_DIRECTORY) if name == "embedded" else name, with_head=with_head)


def describe(checkpoint: Checkpoint, name: str) -> BackboneSpec:
    """What the rest of the service may know of a checkpoint. Raises ValueError where it is not supported."""
    config = checkpoint.config
    return BackboneSpec(
        name=name,
        model_type=checkpoint.model_type,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        norm_eps=config.layer_norm_eps,
        parameters=checkpoint.parameters,
        fingerprint=checkpoint.fingerprint(),
        **ARCHITECTURES[checkpoint.model_type].geometry(config),
    )


def input_statistics(name: str) -> tuple[float, float] | None:
    """Mean and std of the filter bank that an AST's `preprocessor_config.json` names; None without that file."""
    from transformers import ASTFeatureExtractor

    try:
        extractor = ASTFeatureExtractor.from_pretrained(name)
    except OSError:
        return None
    return float(extractor.mean), float(extractor.std)


def build_backbone(
    checkpoint: Checkpoint,
    spec: BackboneSpec,
    device: torch.device,
    dtype: torch.dtype,
    kernels: Kernels = PLAIN,
) -> Backbone:
    """The forward over a checkpoint's tensors; with plain kernels gradients pass to those that ask for them."""
    return ARCHITECTURES[spec.model_type](checkpoint, spec, device, dtype, kernels)
