"""What every architecture is made of, plainly: linear maps, norms, and the convolutions before wav2vec 2.0's layers.

Activations between layers stay in float32; matrix products run in the weights' dtype, as autocast would.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor
from torch.nn import functional

Activation = Callable[[Tensor], Tensor]
Module = Callable[[Tensor], Tensor]


class Projection(ABC):
    """A linear map, perhaps with an activation behind it, as some device likes it best."""

    __slots__ = ()
    activation: Activation | None

    def __call__(self, x: Tensor) -> Tensor:
        """`[..., in]` -> `[..., out]`, behind the activation if there is one."""
        out = self.linear(x)
        return out if self.activation is None else self.activation(out)

    @abstractmethod
    def linear(self, x: Tensor) -> Tensor:
        """The same before the activation: memory that nobody else reads."""


def activation_named(name: str) -> Activation:
    """An activation by its name in a backbone's configuration."""
    from transformers.activations import ACT2FN  # a second or two, which who only stands before a device has no use for

    activation: Activation = ACT2FN[name]
    return activation


def is_gelu(activation: Activation | None) -> bool:
    """Whether `activation` is the exact GELU, which some kernels fuse."""
    from transformers.activations import GELUActivation

    return isinstance(activation, GELUActivation) and activation.act is functional.gelu


def split_heads(x: Tensor, heads: int) -> Tensor:
    """`[B, T, D]` -> `[B, H, T, d]`."""
    batch, length, width = x.shape
    return x.view(batch, length, heads, width // heads).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class Linear(Projection):
    weight: Tensor  # [out, in]
    bias: Tensor | None  # [out]
    activation: Activation | None = None

    def linear(self, x: Tensor) -> Tensor:
        return functional.linear(x.to(self.weight.dtype), self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Norm:
    """Layer norm in float32."""

    weight: Tensor  # [D]
    bias: Tensor  # [D]
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x.float(), self.weight.shape, self.weight, self.bias, self.eps)


class Norming(StrEnum):
    """What a front end's convolution normalises: nothing, each channel over time, or all channels of a frame."""

    NONE = "none"
    GROUP = "group"
    LAYER = "layer"


@dataclass(frozen=True, slots=True)
class Convolution:
    """One layer of wav2vec 2.0's front end; what it normalises depends on the layer and the configuration."""

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
        return self.activation(self.normalise(convolved.to(x.dtype)))

    def normalise(self, x: Tensor) -> Tensor:
        """`[U, out, T]` before the activation."""
        if self.norming is Norming.GROUP:
            return functional.group_norm(x, x.shape[1], self.norm_weight, self.norm_bias)
        if self.norming is Norming.LAYER:
            x = x.transpose(1, 2)
            return functional.layer_norm(x, x.shape[2:], self.norm_weight, self.norm_bias).transpose(1, 2)
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
