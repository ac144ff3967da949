"""wav2vec 2.0 (arXiv 2006.11477) as an explicit loop over frozen layers, post-norm or pre-norm (large, XLS-R)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from service.audio.features import PLAIN_SAMPLES
from service.audio.filter_bank import HOP_SAMPLES
from service.model.attention import Attention
from service.model.backbone import Backbone
from service.model.backbones.front_end import Convolution, Norming, PositionConvolution
from service.model.checkpoint import Checkpoint
from service.model.cpu.convolution import convolution_dtype
from service.model.kernels import Kernels
from service.model.layers import Activation, Module, Norm, Projection, activation_named
from service.model.parts.targets import Changes
from service.model.selection import RowAdapters
from service.model.spec import BackboneSpec

_TARGET_NAMES = {
    "q": "attention.q_proj",
    "k": "attention.k_proj",
    "v": "attention.v_proj",
    "o": "attention.out_proj",
    "fc1": "feed_forward.intermediate_dense",
    "fc2": "feed_forward.output_dense",
}
_MIN_VARIANCE = 1e-10  # keeps the square root's gradient finite on silence
_MIN_STATES = 2  # hidden states that a standard deviation needs


@dataclass(frozen=True, slots=True)
class Wav2Vec2Layer:
    attention: Attention
    norm: Norm
    up: Projection  # with the activation
    down: Projection
    norm_last: Norm


class Wav2Vec2Backbone(Backbone):
    """Layers over a convolutional front end; inputs are samples `[U, N]` at 16 kHz."""

    features = PLAIN_SAMPLES

    def __init__(
        self, checkpoint: Checkpoint, spec: BackboneSpec, device: torch.device, dtype: torch.dtype, kernels: Kernels
    ) -> None:
        super().__init__(checkpoint, spec, device, dtype, kernels)
        config = checkpoint.config
        eps = config.layer_norm_eps
        self._config = config
        self._is_pre_norm = bool(getattr(config, "do_stable_layer_norm", False))
        self._front_activation = activation_named(config.feat_extract_activation)
        self._convolutions = [
            kernels.convolution(self._load_convolution(i, stride, self.front_norming))
            for i, stride in enumerate(config.conv_stride)
        ]
        self._convolution_shapes = list(zip(config.conv_kernel, config.conv_stride, strict=True))
        normed = "feature_projection.layer_norm.weight" in self._tensors
        self._projection_norm = self._norm("feature_projection.layer_norm", eps) if normed else None
        self._projection = self._linear("feature_projection.projection")
        self._positions = self._load_positions()
        activation = activation_named(config.hidden_act)
        # Before the layers where those end in a norm, behind them where they begin with one.
        self._encoder_norm = self._norm("encoder.layer_norm", eps)
        self._layers = [self._load_layer(f"encoder.layers.{i}", eps, activation) for i in range(spec.num_hidden_layers)]
        self._tensors = {}

    @property
    def front_norming(self) -> Norming:
        """What the front end's convolutions normalise."""
        return Norming(self._config.feat_extract_norm)

    def _load_convolution(self, i: int, stride: int, norming: Norming) -> Convolution:
        name = f"feature_extractor.conv_layers.{i}"

        def take(part: str, dtype: torch.dtype) -> Tensor | None:
            tensor = self._tensors.get(f"{name}.{part}")
            return None if tensor is None else tensor.to(self.device, dtype)

        weight = self._tensors[f"{name}.conv.weight"]
        dtype = convolution_dtype(weight, self.dtype, self.device, stride, groups=1)
        return Convolution(
            weight=weight.to(self.device, dtype),
            bias=take("conv.bias", dtype),
            stride=stride,
            norming=Norming.NONE if norming is Norming.GROUP and i > 0 else norming,
            norm_weight=take("layer_norm.weight", self.dtype),
            norm_bias=take("layer_norm.bias", self.dtype),
            activation=self._front_activation,
        )

    def _load_positions(self) -> Module:
        """The position embedding, `[U, T, D]` -> `[U, T, D]`, behind its activation."""
        name = "encoder.pos_conv_embed.conv"
        direction, length = self._tensors[f"{name}.weight_v"], self._tensors[f"{name}.weight_g"]
        weight = torch._weight_norm(direction, length, dim=2)
        convolution = self._kernels.positions(self._position_convolution(name, weight))
        return lambda hidden: self._front_activation(convolution(hidden))

    def _position_convolution(self, name: str, weight: Tensor) -> PositionConvolution:
        groups = self._config.num_conv_pos_embedding_groups
        dtype = convolution_dtype(weight, self.dtype, self.device, 1, groups)
        bias = self._tensors[f"{name}.bias"].to(self.device, dtype)
        return PositionConvolution(weight.to(self.device, dtype), bias, groups)

    def _load_attention(self, name: str) -> Attention:
        return self._attention(f"{name}.q_proj", f"{name}.k_proj", f"{name}.v_proj", f"{name}.out_proj")

    def _load_layer(self, name: str, eps: float, activation: Activation) -> Wav2Vec2Layer:
        return Wav2Vec2Layer(
            attention=self._load_attention(f"{name}.attention"),
            norm=self._norm(f"{name}.layer_norm", eps),
            up=self._linear(f"{name}.feed_forward.intermediate_dense", activation=activation),
            down=self._linear(f"{name}.feed_forward.output_dense"),
            norm_last=self._norm(f"{name}.final_layer_norm", eps),
        )

    def embed(self, inputs: Tensor) -> Tensor:
        features = inputs.to(self.dtype).unsqueeze(1)  # [U, 1, N]
        for convolution in self._convolutions:
            features = convolution(features)
        features = features.transpose(1, 2)
        hidden = self._projection(features if self._projection_norm is None else self._projection_norm(features))
        hidden = hidden.float() + self._positions(hidden)
        return hidden if self._is_pre_norm else self._encoder_norm(hidden)

    def run_layer(self, i: int, hidden: Tensor, rows: RowAdapters) -> Tensor:
        layer = self._layers[i]
        if self._is_pre_norm:
            hidden = hidden + layer.attention(layer.norm(hidden), rows)
            fed = rows.project("fc2", layer.down, rows.project("fc1", layer.up, layer.norm_last(hidden)))
            return rows.add_bottlenecks(hidden, fed, hidden + fed)
        hidden = hidden + layer.attention(hidden, rows)
        normed = layer.norm(hidden)
        fed = rows.project("fc2", layer.down, rows.project("fc1", layer.up, normed))
        return layer.norm_last(rows.add_bottlenecks(hidden, fed, normed + fed))

    def pool(self, hidden: Tensor) -> Tensor:
        last = self._encoder_norm(hidden) if self._is_pre_norm else hidden
        variance, mean = torch.var_mean(last, dim=1)
        return torch.cat((mean, variance.clamp_min(_MIN_VARIANCE).sqrt()), dim=1)

    def fold_prompt(self, i: int, prompt: Tensor, changes: Changes) -> tuple[Tensor, Tensor]:
        layer = self._layers[i]
        return layer.attention.fold(i, layer.norm(prompt) if self._is_pre_norm else prompt, changes)

    def target_name(self, i: int, target: str) -> str:
        return f"encoder.layers.{i}.{_TARGET_NAMES[target]}"

    def token_count(self, window_frames: int) -> int:
        length = window_frames * HOP_SAMPLES
        for kernel, stride in self._convolution_shapes:
            length = (length - kernel) // stride + 1
        return length


def check_wav2vec2(checkpoint: Checkpoint) -> int:
    """The fewest frames that make two hidden states. Raises ValueError for a configuration that is not supported."""
    config = checkpoint.config
    if getattr(config, "add_adapter", False):
        raise ValueError("the backbone has add_adapter, convolutions behind its layers, which are not supported")
    samples = _MIN_STATES
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        samples = (samples - 1) * stride + kernel
    return -(-samples // HOP_SAMPLES)
