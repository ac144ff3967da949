"""Geometry of backbones and adapters as plain values. Knows no tensors and no files."""

from dataclasses import dataclass
from enum import StrEnum

NULL_SLOT = 0  # slot of the null adapter: the bare backbone
MEL_BINS = 128  # of the service's filter bank: the height of AST's input


class ModelType(StrEnum):
    """Backbone architectures, named as in the backbone's own config.json."""

    AST = "audio-spectrogram-transformer"
    WAV2VEC2 = "wav2vec2"


class TaskType(StrEnum):
    CLASSIFICATION = "AUDIO_CLASSIFICATION"
    VERIFICATION = "SPEAKER_VERIFICATION"


@dataclass(frozen=True, slots=True)
class BackboneSpec:
    """What the rest of the service may know of the frozen backbone.

    Args:
        name: directory or Hub id that it was loaded from.
        hidden_size: D.
        embedding_size: E, what heads read: D for AST, 2 D for wav2vec 2.0 (mean and standard deviation).
        parameters: number of frozen parameters.
        fingerprint: `sha256:...` of the tensors and configuration that the forward reads.
        min_window_frames: shortest window that the architecture can take, frames of 10 ms.
    """

    name: str
    model_type: ModelType
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    embedding_size: int
    parameters: int
    fingerprint: str
    min_window_frames: int = 1


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """Geometry of one adapter.

    Args:
        prompt_length: P, prompt tokens in each layer; 0 for none.
        bottleneck_dim: R; 0 for no adapter term at all, its residual included.
        adapter_scale: factor on the up-projection's output.
        adapter_residual: whether the adapter adds its input (true for the paper's wav2vec 2.0).
        outputs: C classes, or the embedding dimension for speaker verification.
        conv_kernel: K, frames of the depthwise convolution inside the bottleneck, odd; 0 for none.
        layer_aggregation: whether the head reads a weighted sum of all layers' outputs.
        input_prompt: p, width of the frame around the spectrogram (AST); 0 for none.
        input_frames: frames of the window that the input prompt lies around; 0 without one.
    """

    task_type: TaskType
    prompt_length: int
    bottleneck_dim: int
    adapter_scale: float
    adapter_residual: bool
    outputs: int
    conv_kernel: int = 0
    layer_aggregation: bool = False
    input_prompt: int = 0
    input_frames: int = 0

    @property
    def format_version(self) -> int:
        """The bundle format's oldest version that can hold this adapter."""
        return 2 if self.conv_kernel or self.layer_aggregation or self.input_prompt else 1


def expected_shapes(adapter: AdapterSpec, backbone: BackboneSpec) -> dict[str, tuple[int, ...]]:
    """Names and shapes of every tensor of a bundle's weights file (contract, section 2)."""
    d, e = backbone.hidden_size, backbone.embedding_size
    p, r = adapter.prompt_length, adapter.bottleneck_dim
    shapes: dict[str, tuple[int, ...]] = {}
    if adapter.input_prompt:
        width, height = adapter.input_prompt, MEL_BINS - 2 * adapter.input_prompt
        shapes["input.prompt.up"] = shapes["input.prompt.down"] = (width, adapter.input_frames)
        shapes["input.prompt.left"] = shapes["input.prompt.right"] = (height, width)
    for layer in range(backbone.num_hidden_layers):
        if p:
            shapes[f"layers.{layer}.prompt"] = (p, d)
        if r:
            shapes[f"layers.{layer}.adapter.down.weight"] = (r, d)
            shapes[f"layers.{layer}.adapter.down.bias"] = (r,)
            shapes[f"layers.{layer}.adapter.up.weight"] = (d, r)
            shapes[f"layers.{layer}.adapter.up.bias"] = (d,)
        if adapter.conv_kernel:
            shapes[f"layers.{layer}.adapter.conv.weight"] = (r, adapter.conv_kernel)
            shapes[f"layers.{layer}.adapter.conv.bias"] = (r,)
    if adapter.layer_aggregation:
        shapes["head.layers.weight"] = (backbone.num_hidden_layers + 1,)
    if adapter.task_type is TaskType.CLASSIFICATION:
        shapes["head.norm.weight"] = shapes["head.norm.bias"] = (e,)
        shapes["head.linear.weight"] = (adapter.outputs, e)
        shapes["head.linear.bias"] = (adapter.outputs,)
    else:
        shapes["head.embedding.weight"] = (adapter.outputs, e)
        shapes["head.embedding.bias"] = (adapter.outputs,)
    return shapes
