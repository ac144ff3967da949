"""bfloat16 weights in oneDNN's own blocked layout, reordered once at loading, with the activation fused.

Plain products reorder their weights in every call. For inference on CPUs; takes no gradients.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from service.model.layers import Activation, Convolution, Linear, Module, Norming, Projection, is_gelu

FUSED_GELU: tuple[str, list[float], str] = ("gelu", [], "none")  # oneDNN's exact GELU behind the product
NO_ACTIVATION: tuple[str, list[float], str] = ("none", [], "")


@dataclass(frozen=True, slots=True)
class PrepackedLinear(Projection):
    weight: Tensor  # opaque
    bias: Tensor | None  # [out]
    activation: Activation | None
    fused: bool  # whether the activation runs inside the product

    def __call__(self, x: Tensor, behind: tuple[str, list[float], str] | None = None) -> Tensor:
        """`[..., in]` -> `[..., out]`, bfloat16.

        Args:
            behind: what runs inside the product in place of the layer's own activation.
        """
        inside = behind or (FUSED_GELU if self.fused else NO_ACTIVATION)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(torch.bfloat16), self.weight, self.bias, *inside)
        return out if behind or self.fused or self.activation is None else self.activation(out)

    def linear(self, x: Tensor) -> Tensor:
        return self(x, NO_ACTIVATION)


def prepack_linear(plain: Linear) -> Projection:
    weight = torch.ops.mkldnn._reorder_linear_weight(plain.weight)
    return PrepackedLinear(weight, plain.bias, plain.activation, is_gelu(plain.activation))


@dataclass(frozen=True, slots=True)
class PrepackedConvolution:
    """A front end's layer over frames whose channels lie side by side, as the next layer reads them."""

    plain: Convolution
    weight: Tensor  # opaque
    fused: bool

    def __call__(self, x: Tensor) -> Tensor:
        """`[U, in, N]` -> `[U, out, T]`, a view of `[U, T, out]`."""
        behind = FUSED_GELU if self.fused else NO_ACTIVATION
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x.unsqueeze(2), self.weight, self.plain.bias, [0, 0], [1, self.plain.stride], [1, 1], 1, *behind
        )
        if self.fused:
            return out.squeeze(2)
        if self.plain.norming is Norming.GROUP:  # with the fourth dimension, without which it would be copied
            return self.plain.activation(self.plain.normalise(out)).squeeze(2)
        return self.plain.activation(self.plain.normalise(out.squeeze(2)))


def prepack_convolution(plain: Convolution) -> Module:
    if plain.weight.dtype is not torch.bfloat16:
        return plain
    weight = plain.weight.unsqueeze(2).to(memory_format=torch.channels_last)  # [out, in, 1, kernel]
    packed = torch.ops.mkldnn._reorder_convolution_weight(weight, [0, 0], [1, plain.stride], [1, 1], 1)
    return PrepackedConvolution(plain, packed, plain.norming is Norming.NONE and is_gelu(plain.activation))
