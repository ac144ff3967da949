"""wav2vec 2.0 (arXiv 2006.11477): layers over a convolutional front end, post-norm or pre-norm (large, XLS-R)."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from service.audio.features import PLAIN_SAMPLES
from service.audio.filter_bank import HOP_SAMPLES
from service.model.backbone import Backbone
from service.model.cpu.convolution import convolution_dtype
from service.model.layers import Convolution, Module, Norming, PositionConvolution, activation_named
from service.model.noise import QUIET, LayerNoise

_MIN_VARIANCE = 1e-10  # keeps the square root's gradient finite on silence
_MIN_STATES = 2  # hidden states that a standard deviation needs


class Wav2Vec2Backbone(Backbone):
    """Layers over a convolutional front end; inputs are samples `[U, N]` at 16 kHz."""

    features = PLAIN_SAMPLES
    layers_name = "encoder.layers"
    names: ClassVar = {
        "q": "attention.q_proj",
        "k": "attention.k_proj",
        "v": "attention.v_proj",
        "o": "attention.out_proj",
        "fc1": "feed_forward.intermediate_dense",
        "fc2": "feed_forward.output_dense",
        "norm": "layer_norm",
        "norm_last": "final_layer_norm",
    }

    @classmethod
    def geometry(cls, config: Any) -> dict[str, int]:
        if getattr(config, "add_adapter", False):
            raise ValueError("the backbone has add_adapter, convolutions behind its layers, which are not supported")
        samples = _MIN_STATES
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            samples = (samples - 1) * stride + kernel
        return {"embedding_size": 2 * config.hidden_size, "min_window_frames": -(-samples // HOP_SAMPLES)}

    def _load(self) -> None:
        config = self._config
        self.is_pre_norm = bool(getattr(config, "do_stable_layer_norm", False))
        self._front_activation = activation_named(config.feat_extract_activation)
        self._convolutions = [
            self._kernels.convolution(self._load_convolution(i, stride, self.front_norming))
            for i, stride in enumerate(config.conv_stride)
        ]
        normed = "feature_projection.layer_norm.weight" in self._tensors
        self._projection_norm = self._norm("feature_projection.layer_norm") if normed else None
        self._projection = self._linear("feature_projection.projection")
        self._positions = self._load_positions()
        # Before the layers where those end in a norm, behind them where they begin with one.
        self._encoder_norm = self._norm("encoder.layer_norm")

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

    def embed(self, inputs: Tensor, noise: LayerNoise = QUIET) -> Tensor:
        features = inputs.to(self.dtype).unsqueeze(1)  # [U, 1, N]
        for convolution in self._convolutions:
            features = convolution(features)
        features = features.transpose(1, 2)
        hidden = self._projection(features if self._projection_norm is None else self._projection_norm(features))
        if noise is not QUIET:
            hidden = noise.in_front(hidden)
        hidden = hidden.float() + self._positions(hidden)
        return hidden if self.is_pre_norm else self._encoder_norm(hidden)

    def pool(self, hidden: Tensor) -> Tensor:
        last = self._encoder_norm(hidden) if self.is_pre_norm else hidden
        variance, mean = torch.var_mean(last, dim=1)
        return torch.cat((mean, variance.clamp_min(_MIN_VARIANCE).sqrt()), dim=1)

    def token_count(self, window_frames: int) -> int:
        length = window_frames * HOP_SAMPLES
        for kernel, stride in zip(self._config.conv_kernel, self._config.conv_stride, strict=True):
            length = (length - kernel) // stride + 1
        return length
