"""The depthwise convolution over time inside a bottleneck, as in a Conformer's layer (arXiv 2005.08100, section 2.2).

`hidden = relu(conv(down(x)))`: each of the bottleneck's channels is convolved with a kernel of its own. A frame meets
its neighbours in its own row only, and zeros beyond the row's ends.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from service.model.parts.part import Part, Shapes, each_layer, pad, problem
from service.model.spec import BackboneSpec

if TYPE_CHECKING:
    from service.model.adapter import AdapterWeights


class Convolution(Part):
    """`conv_kernel` K frames, odd: `layers.{i}.adapter.conv.weight` `[R, K]`, `.conv.bias` `[R]`."""

    since: ClassVar = {"conv_kernel": 2}
    limits: ClassVar = {"conv_kernel": 31}

    conv_kernel: int = Field(default=0, ge=0)
    bottleneck_dim: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check_kernel(self) -> Self:
        if self.conv_kernel and self.conv_kernel % 2 == 0:
            raise problem(f"conv_kernel: expected an odd number of frames, or 0 for none, got {self.conv_kernel}")
        if self.conv_kernel and not self.bottleneck_dim:
            raise problem(f"conv_kernel: {self.conv_kernel} needs a bottleneck, but bottleneck_dim is 0")
        return self

    @property
    def is_held(self) -> bool:
        return self.conv_kernel > 0

    def shapes(self, backbone: BackboneSpec) -> Shapes:
        width, kernel = self.bottleneck_dim, self.conv_kernel
        return each_layer(backbone, {"adapter.conv.weight": (width, kernel), "adapter.conv.bias": (width,)})

    def initialise(self, name: str, parameter: Tensor) -> None:
        if name.endswith("conv.weight"):  # the identity, so that training starts at the plain bottleneck
            parameter[:, parameter.shape[1] // 2] = 1.0

    def fold(self, weights: "AdapterWeights", width: int) -> dict[str, Tensor]:
        """Its tensors in a bottleneck's slot: `[L, R, K]` and `[L, 1, R]`, R padded to `width`."""
        bias = weights.stack("adapter.conv.bias").unsqueeze(1)
        return {
            "conv_weight": pad(weights.stack("adapter.conv.weight"), 1, width),
            "conv_bias": pad(bias, 2, width),
        }


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """How a sequence of tokens lies in time.

    Args:
        special: tokens in front that stand for no time; they pass the convolution by.
        bands: runs of frames behind each other, each convolved by itself (AST: one for each row of patches).
    """

    special: int = 0
    bands: int = 1


def convolve(x: Tensor, weight: Tensor, bias: Tensor, layout: TokenLayout) -> Tensor:
    """Bottlenecks before their activation, `[C, T, R]` -> `[C, T, R]`, with kernels `[C, R, K]` and biases `[C, 1, R]`.

    Every row and channel is a group of one convolution.
    """
    special, bands, kernel = layout.special, layout.bands, weight.shape[2]
    frames = x[:, special:]
    rows, length, width = frames.shape
    channels = frames.reshape(rows, bands, length // bands, width).permute(1, 0, 3, 2)  # [bands, C, R, frames]
    convolved = functional.conv1d(
        channels.reshape(bands, rows * width, -1),
        weight.reshape(rows * width, 1, kernel),
        bias.reshape(rows * width),
        padding=kernel // 2,
        groups=rows * width,
    )
    convolved = convolved.view(bands, rows, width, -1).permute(1, 0, 3, 2).reshape(rows, length, width).to(x.dtype)
    if special:
        convolved = functional.pad(convolved, (0, 0, special, 0))
        convolved[:, :special] = x[:, :special]
    return convolved
