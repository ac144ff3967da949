"""The convolutions before wav2vec 2.0's layers (arXiv 2006.11477), plainly."""

from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor
from torch.nn import functional

from service.model.layers import Activation


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
