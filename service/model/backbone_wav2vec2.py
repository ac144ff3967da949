"""wav2vec 2.0 (arXiv 2006.11477) as an explicit loop over frozen post-norm layers."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from transformers.activations import ACT2FN

from service.model.backbone import Backbone
from service.model.checkpoint import Checkpoint
from service.model.layers import Attention, Linear, Norm, RowAdapters
from service.model.spec import BackboneSpec

SAMPLES_PER_FRAME = 160  # 10 ms, the unit of `window_frames`
_MIN_VARIANCE = 1e-10  # keeps the square root's gradient finite on silence
_MIN_STATES = 2  # hidden states that a standard deviation needs


@dataclass(frozen=True, slots=True)
class Convolution:
    """One layer of the front end; what is normalised, if anything, depends on the layer and the configuration."""

    weight: Tensor  # [out, in, kernel]
    bias: Tensor | None  # [out]
    stride: int
    norm: Literal["none", "group", "layer"]  # each channel over time, or all channels of a frame
    norm_weight: Tensor | None  # [out]
    norm_bias: Tensor | None  # [out]

    def __call__(self, x: Tensor) -> Tensor:
        """`[U, in, N]` -> `[U, out, T]`, before the activation."""
        x = functional.conv1d(x, self.weight, self.bias, self.stride)
        if self.norm == "group":
            return functional.group_norm(x, len(self.weight), self.norm_weight, self.norm_bias)
        if self.norm == "layer":
            x = x.transpose(1, 2)
            return functional.layer_norm(x, x.shape[2:], self.norm_weight, self.norm_bias).transpose(1, 2)
        return x


@dataclass(frozen=True, slots=True)
class Wav2Vec2Layer:
    attention: Attention
    norm: Norm
    up: Linear
    down: Linear
    norm_last: Norm


class Wav2Vec2Backbone(Backbone):
    """Post-norm layers over a convolutional front end; inputs are samples `[U, N]` at 16 kHz."""

    def __init__(self, checkpoint: Checkpoint, spec: BackboneSpec, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(checkpoint, spec, device, dtype)
        config = checkpoint.config
        eps = config.layer_norm_eps
        self._convolutions = [
            self._load_convolution(i, stride, config.feat_extract_norm) for i, stride in enumerate(config.conv_stride)
        ]
        self._front_activation = ACT2FN[config.feat_extract_activation]
        self._projection_norm = self._norm("feature_projection.layer_norm", eps)
        self._projection = self._linear("feature_projection.projection")
        position = "encoder.pos_conv_embed.conv"
        direction, length = self._tensors[f"{position}.weight_v"], self._tensors[f"{position}.weight_g"]
        self._position_weight = torch._weight_norm(direction, length, dim=2).to(device, dtype)
        self._position_bias = self._tensors[f"{position}.bias"].to(device, dtype)
        self._position_groups = config.num_conv_pos_embedding_groups
        self._activation = ACT2FN[config.hidden_act]
        self._norm_first = self._norm("encoder.layer_norm", eps)
        self._layers = [self._load_layer(f"encoder.layers.{i}", eps) for i in range(spec.num_hidden_layers)]
        self._tensors = {}

    def _load_convolution(self, i: int, stride: int, norm: Literal["group", "layer"]) -> Convolution:
        name = f"feature_extractor.conv_layers.{i}"

        def take(part: str) -> Tensor | None:
            tensor = self._tensors.get(f"{name}.{part}")
            return None if tensor is None else tensor.to(self.device, self.dtype)

        return Convolution(
            weight=self._tensors[f"{name}.conv.weight"].to(self.device, self.dtype),
            bias=take("conv.bias"),
            stride=stride,
            norm="none" if norm == "group" and i > 0 else norm,
            norm_weight=take("layer_norm.weight"),
            norm_bias=take("layer_norm.bias"),
        )

    def _load_layer(self, name: str, eps: float) -> Wav2Vec2Layer:
        inner = f"{name}.attention"
        return Wav2Vec2Layer(
            attention=self._attention(f"{inner}.q_proj", f"{inner}.k_proj", f"{inner}.v_proj", f"{inner}.out_proj"),
            norm=self._norm(f"{name}.layer_norm", eps),
            up=self._linear(f"{name}.feed_forward.intermediate_dense"),
            down=self._linear(f"{name}.feed_forward.output_dense"),
            norm_last=self._norm(f"{name}.final_layer_norm", eps),
        )

    def embed(self, inputs: Tensor) -> Tensor:
        features = inputs.to(self.dtype).unsqueeze(1)  # [U, 1, N]
        for convolution in self._convolutions:
            features = self._front_activation(convolution(features))
        hidden = self._projection(self._projection_norm(features.transpose(1, 2)))
        return self._norm_first(hidden.float() + self._positions(hidden))

    def _positions(self, hidden: Tensor) -> Tensor:
        """The convolutional position embedding: `[U, T, D]` -> `[U, T, D]`."""
        kernel = self._position_weight.shape[2]
        positions = functional.conv1d(
            hidden.transpose(1, 2),
            self._position_weight,
            self._position_bias,
            padding=kernel // 2,
            groups=self._position_groups,
        )
        if kernel % 2 == 0:  # an even kernel yields one frame too many
            positions = positions[:, :, :-1]
        activated: Tensor = self._front_activation(positions)
        return activated.transpose(1, 2)

    def run_layer(self, i: int, hidden: Tensor, rows: RowAdapters) -> Tensor:
        layer = self._layers[i]
        hidden = hidden + layer.attention(hidden, rows)
        normed = layer.norm(hidden)
        out = normed + layer.down(self._activation(layer.up(normed)))
        adapted = rows.bottleneck(hidden)
        return layer.norm_last(out if adapted is None else out + adapted)

    def pool(self, hidden: Tensor) -> Tensor:
        variance, mean = torch.var_mean(hidden, dim=1)
        return torch.cat((mean, variance.clamp_min(_MIN_VARIANCE).sqrt()), dim=1)

    def fold_prompt(self, i: int, prompt: Tensor) -> tuple[Tensor, Tensor]:
        return self._layers[i].attention.fold(prompt)

    def input_shape(self, window_frames: int) -> tuple[int, ...]:
        return (window_frames * SAMPLES_PER_FRAME,)


def check_wav2vec2(checkpoint: Checkpoint) -> int:
    """The fewest frames that make two hidden states. Raises ValueError for a configuration that is not supported."""
    config = checkpoint.config
    if config.do_stable_layer_norm:
        raise ValueError(
            "the backbone has do_stable_layer_norm (pre-norm wav2vec 2.0), which is not supported yet; "
            "use one without it, such as facebook/wav2vec2-base"
        )
    samples = _MIN_STATES
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        samples = (samples - 1) * stride + kernel
    return -(-samples // SAMPLES_PER_FRAME)
