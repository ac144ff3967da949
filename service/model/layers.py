"""What both architectures' layers are made of. Knows neither checkpoints nor slots beyond the rows it is given.

Activations between layers stay in float32; matrix products run in the weights' dtype, as autocast would.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers.activations import ACT2FN, GELUActivation

from service.model.convolution import RowConvolution

Projection = Callable[[Tensor], Tensor]
Activation = Callable[[Tensor], Tensor]


def activation_named(name: str) -> Activation:
    """An activation by its name in a backbone's configuration."""
    activation: Activation = ACT2FN[name]
    return activation


def is_gelu(activation: Activation | None) -> bool:
    """Whether `activation` is the exact GELU, which some kernels fuse."""
    return isinstance(activation, GELUActivation) and activation.act is functional.gelu


@dataclass(frozen=True, slots=True)
class Linear:
    weight: Tensor  # [out, in]
    bias: Tensor | None  # [out]
    activation: Activation | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """`[..., in]` -> `[..., out]`."""
        out = functional.linear(x.to(self.weight.dtype), self.weight, self.bias)
        return out if self.activation is None else self.activation(out)


@dataclass(frozen=True, slots=True)
class Norm:
    """Layer norm in float32."""

    weight: Tensor  # [D]
    bias: Tensor  # [D]
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x.float(), self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class RowAdapters:
    """One layer's adapters gathered for the rows of a batch. None where no row has that part."""

    keys: Tensor | None  # [B, H, P, d], the prompt folded into keys
    values: Tensor | None  # [B, H, P, d]
    prompt_lengths: Sequence[int]  # [B], at most P each
    prompt_mask: Tensor | None  # [B, 1, 1, P], 0 or -inf; None where every row's prompt has length P
    down_weight: Tensor | None  # [B, D, R]
    down_bias: Tensor | None  # [B, 1, R]
    up_weight: Tensor | None  # [B, R, D], adapter_scale folded in
    up_bias: Tensor | None  # [B, 1, D], adapter_scale folded in
    residual: Tensor | None  # [B, 1, 1], 1 where the adapter adds its input; None where no row does
    dropout: float = 0.0  # inside the bottleneck, in training only
    convolution: RowConvolution | None = None  # None where no row has one

    def bottleneck(self, x: Tensor) -> Tensor | None:
        """`scale * up(relu(conv(down(x))))`, plus `x` where residual (contract section 3); `[B, T, D]`, float32."""
        if self.down_weight is None or self.down_bias is None or self.up_weight is None or self.up_bias is None:
            return None
        hidden = torch.baddbmm(self.down_bias, x.to(self.down_weight.dtype), self.down_weight)
        if self.convolution is not None:
            hidden = self.convolution(hidden)
        hidden = hidden.relu()
        if self.dropout:
            hidden = functional.dropout(hidden, self.dropout)
        out = torch.baddbmm(self.up_bias, hidden, self.up_weight).float()
        return out if self.residual is None else torch.addcmul(out, x, self.residual)
