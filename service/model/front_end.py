"""The convolutions before wav2vec 2.0's layers (arXiv 2006.11477), plainly. Knows no transformer and no adapters."""

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor
from torch.nn import functional

from service.model.layers import Activation

_PROBED_FRAMES = 64
_ROUNDING = 0.05  # relative error that a dtype may have: bfloat16 has 0.003


class Norming(StrEnum):
    """What a front end's convolution normalises: nothing, each channel over time, or all channels of a frame."""

    NONE = "none"
    GROUP = "group"
    LAYER = "layer"


@dataclass(frozen=True, slots=True)
class Convolution:
    """One layer of the front end; what is normalised, if anything, depends on the layer and the configuration."""

    weight: Tensor  # [out, in, kernel], of a dtype that this machine convolves in rightly
    bias: Tensor | None  # [out], of the same
    stride: int
    norming: Norming
    norm_weight: Tensor | None  # [out]
    norm_bias: Tensor | None  # [out]
    activation: Activation

    def __call__(self, x: Tensor) -> Tensor:
        """`[U, in, N]` -> `[U, out, T]`."""
        convolved = functional.conv1d(x.to(self.weight.dtype), self.weight, self.bias, self.stride)
        return self.activation(normalise(convolved.to(x.dtype), self))


def normalise(x: Tensor, layer: Convolution) -> Tensor:
    """`[U, out, T]` as the layer normalises it, before its activation."""
    if layer.norming is Norming.GROUP:
        return functional.group_norm(x, x.shape[1], layer.norm_weight, layer.norm_bias)
    if layer.norming is Norming.LAYER:
        x = x.transpose(1, 2)
        return functional.layer_norm(x, x.shape[2:], layer.norm_weight, layer.norm_bias).transpose(1, 2)
    return x


def convolution_dtype(
    weight: Tensor, dtype: torch.dtype, device: torch.device, stride: int, groups: int
) -> torch.dtype:
    """The dtype asked for, or float32 where this machine convolves with such a weight wrongly in it.

    oneDNN does so in bfloat16 on CPUs with AMX (seen with torch 2.14.1): with 8 input channels and 8 taps, or 16 to 16
    channels with 8 taps and a stride of 8, what comes out is noise. The shapes of the published checkpoints are right.

    Args:
        weight: `[out, in / groups, kernel]`.
    """
    if device.type != "cpu" or dtype is torch.float32:
        return dtype
    channels, kernel = weight.shape[1] * groups, weight.shape[2]
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(1, channels, kernel + stride * (_PROBED_FRAMES - 1), generator=generator).to(dtype)
    given = weight.detach().to(device, dtype)
    wanted = functional.conv1d(probe.float(), given.float(), None, stride, groups=groups)
    error = (functional.conv1d(probe, given, None, stride, groups=groups).float() - wanted).norm()
    return dtype if error <= _ROUNDING * wanted.norm() else torch.float32


@dataclass(frozen=True, slots=True)
class PositionConvolution:
    """The convolution of a position embedding, as long as its input, before its activation."""

    weight: Tensor  # [D, D / groups, kernel]
    bias: Tensor  # [D]
    groups: int

    def __call__(self, hidden: Tensor) -> Tensor:
        """`[U, T, D]` -> `[U, T, D]`."""
        kernel = self.weight.shape[2]
        x = hidden.to(self.weight.dtype).transpose(1, 2)
        positions = functional.conv1d(x, self.weight, self.bias, padding=kernel // 2, groups=self.groups)
        return positions[:, :, : hidden.shape[1]].transpose(1, 2)  # an even kernel yields one frame too many
