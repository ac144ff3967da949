"""The bottleneck beside each layer's feed-forward: `scale * up(relu(down(x)))`, plus `x` where residual (IPET)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from service.model.groups import Group, Groups
from service.model.layers import Module
from service.model.parts.convolution import Convolution, TokenLayout, convolve
from service.model.parts.part import Holding, Part, Shapes, each_layer, pad, size_class
from service.model.spec import BackboneSpec

if TYPE_CHECKING:
    from service.model.adapter import AdapterWeights
    from service.model.backbone import Backbone

PLACE = "bottleneck"
# All are zero at zero, so that zeros around a smaller bottleneck stay zeros.
_ACTIVATIONS: dict[str, Module] = {"relu": functional.relu, "gelu": functional.gelu, "silu": functional.silu}


class Bottleneck(Part):
    """`bottleneck_dim` R: `layers.{i}.adapter.down.weight` `[R, D]`, `.up.weight` `[D, R]` and their biases."""

    always: ClassVar = ("bottleneck_dim", "adapter_scale", "adapter_residual")
    since: ClassVar = {"adapter_activation": 3, "adapter_place": 3, "adapter_norm": 3}
    limits: ClassVar = {"bottleneck_dim": 128}

    bottleneck_dim: int = Field(default=0, ge=0)
    adapter_scale: float = Field(default=1.0, ge=-1e6, le=1e6)
    adapter_residual: bool = False
    adapter_activation: Literal["relu", "gelu", "silu"] = "relu"
    adapter_place: Literal["parallel", "sequential"] = "parallel"
    adapter_norm: bool = False

    @property
    def is_held(self) -> bool:
        return self.bottleneck_dim > 0

    def shapes(self, backbone: BackboneSpec) -> Shapes:
        d, r = backbone.hidden_size, self.bottleneck_dim
        parts: Shapes = {"down.weight": (r, d), "down.bias": (r,), "up.weight": (d, r), "up.bias": (d,)}
        parts |= {"norm.weight": (d,), "norm.bias": (d,)} if self.adapter_norm else {}
        return each_layer(backbone, {f"adapter.{name}": shape for name, shape in parts.items()})

    def hold(self, weights: "AdapterWeights", backbone: "Backbone") -> Iterable[Holding]:
        """Zeros around a smaller bottleneck change nothing: `up` is zero where `down` is. The scale goes into `up`."""
        width, scale = size_class(self.bottleneck_dim), self.adapter_scale
        tensors = {
            "down_weight": pad(weights.stack("adapter.down.weight").transpose(1, 2), 2, width),  # [L, D, R]
            "down_bias": pad(weights.stack("adapter.down.bias").unsqueeze(1), 2, width),  # [L, 1, R]
            "up_weight": pad(weights.stack("adapter.up.weight").transpose(1, 2) * scale, 1, width),  # [L, R, D]
            "up_bias": weights.stack("adapter.up.bias").unsqueeze(1) * scale,  # [L, 1, D]
        }
        if self.adapter_residual:
            tensors["residual"] = tensors["up_bias"].new_ones(len(tensors["up_bias"]), 1, 1)
        if self.adapter_norm:
            tensors["norm_weight"] = weights.stack("adapter.norm.weight").unsqueeze(1)  # [L, 1, D]
            tensors["norm_bias"] = weights.stack("adapter.norm.bias").unsqueeze(1)
        convolution = weights.spec.find(Convolution)
        if convolution is not None:
            tensors |= convolution.fold(weights, width)
        kernel = convolution.conv_kernel if convolution else 0
        is_last = self.adapter_place == "sequential"
        kind = Kind(width, self.adapter_residual, kernel, self.adapter_activation, is_last, self.adapter_norm)
        yield Holding(PLACE, kind, tensors, size=self.bottleneck_dim)

    def initialise(self, name: str, parameter: Tensor) -> None:
        # Up-projections and biases start at zero, so that training starts from the backbone's own answers.
        if name.endswith("down.weight"):
            nn.init.kaiming_uniform_(parameter, a=5**0.5)
        elif name.endswith("norm.weight"):
            nn.init.ones_(parameter)


@dataclass(frozen=True, slots=True)
class Kind:
    """What bottlenecks of one group have in common."""

    width: int
    residual: bool
    conv_kernel: int
    activation: str
    is_last: bool  # behind the feed-forward, whose output it reads
    norm: bool


def add_bottlenecks(
    groups: Groups, layer: int, x: Tensor, fed: Tensor, out: Tensor, layout: TokenLayout, dropout: float = 0.0
) -> Tensor:
    """`out` with each row's `a(x)` of its own bottleneck added; all `[B, T, D]`, float32 (contract, sections 3 and 5).

    Args:
        fed: the feed-forward's output, which sequential ones read instead of `x`.
        dropout: inside the bottleneck, in training only.
    """
    for group in groups.groups:
        read = group.rows.take(fed if group.kind.is_last else x)
        out = group.rows.add(out, _bottleneck(group, layer, read, layout, dropout))
    return out


def _bottleneck(group: Group, layer: int, x: Tensor, layout: TokenLayout, dropout: float) -> Tensor:
    down, up = group.take("down_weight", layer, dim=1), group.take("up_weight", layer, dim=0)
    read = x
    if group.kind.norm:
        read = functional.layer_norm(x.float(), x.shape[-1:])
        read = torch.addcmul(group.take("norm_bias", layer).float(), read, group.take("norm_weight", layer).float())
    hidden = torch.baddbmm(group.take("down_bias", layer, dim=1), read.to(down.dtype), down)
    if group.kind.conv_kernel:
        weight, bias = group.take("conv_weight", layer, dim=0), group.take("conv_bias", layer, dim=1)
        hidden = convolve(hidden, weight, bias, layout)
    hidden = _ACTIVATIONS[group.kind.activation](hidden)
    if dropout:
        hidden = functional.dropout(hidden, dropout)
    out = torch.baddbmm(group.take("up_bias", layer), hidden, up).float()
    return torch.addcmul(out, x, group.take("residual", layer).float()) if group.kind.residual else out
