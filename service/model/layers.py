"""What every architecture's layers are made of.

Activations between layers stay in float32; matrix products run in the weights' dtype, as autocast would.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn import functional
from transformers.activations import ACT2FN, GELUActivation

Activation = Callable[[Tensor], Tensor]
Module = Callable[[Tensor], Tensor]


class Projection(Protocol):
    """A linear layer as some device likes it best."""

    @property
    def activation(self) -> Activation | None: ...

    def __call__(self, x: Tensor) -> Tensor:
        """`[..., in]` -> `[..., out]`, behind the activation if there is one."""
        ...

    def linear(self, x: Tensor) -> Tensor:
        """The same before the activation: memory that nobody else reads."""
        ...


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
        out = self.linear(x)
        return out if self.activation is None else self.activation(out)

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
