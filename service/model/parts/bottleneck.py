"""The bottleneck beside each layer's feed-forward: `scale * up(relu(down(x)))`, plus `x` where residual (IPET).

One with a `conv_kernel` convolves what is inside over time, as a Conformer's layer does (arXiv 2005.08100, section
2.2): `relu(conv(down(x)))`, each channel with a kernel of its own. A frame meets its neighbours in its own row and
band only, and zeros beyond their ends.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from service.model.groups import Group
from service.model.layers import Module
from service.model.parts.part import Holding, Part, Shapes, Source, each_layer, problem, size_class
from service.model.spec import BackboneSpec

PLACE = "bottleneck"
# All are zero at zero, so that zeros around a smaller bottleneck stay zeros.
_ALONG = {"down_weight": 2, "down_bias": 2, "up_weight": 1, "conv_weight": 1, "conv_bias": 2}  # the bottleneck's width
_ACTIVATIONS: dict[str, Module] = {"relu": functional.relu, "gelu": functional.gelu, "silu": functional.silu}


class Bottleneck(Part):
    """`bottleneck_dim` R: `layers.{i}.adapter.down.weight` `[R, D]`, `.up.weight` `[D, R]` and their biases.

    `adapter_norm`: `.norm.weight`, `.norm.bias` `[D]`. `conv_kernel` K, odd: `.conv.weight` `[R, K]`, `.conv.bias`.
    """

    family: ClassVar = "adapter"
    always: ClassVar = ("bottleneck_dim", "adapter_scale", "adapter_residual")
    since: ClassVar = {"adapter_activation": 3, "adapter_place": 3, "adapter_norm": 3, "conv_kernel": 2}
    limits: ClassVar = {"bottleneck_dim": 128, "conv_kernel": 31}

    bottleneck_dim: int = Field(default=0, ge=0)
    adapter_scale: float = Field(default=1.0, ge=-1e6, le=1e6)
    adapter_residual: bool = False
    adapter_activation: Literal["relu", "gelu", "silu"] = "relu"
    adapter_place: Literal["parallel", "sequential"] = "parallel"
    adapter_norm: bool = False
    conv_kernel: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check_kernel(self) -> Self:
        if self.conv_kernel and self.conv_kernel % 2 == 0:
            raise problem(f"conv_kernel: expected an odd number of frames, or 0 for none, got {self.conv_kernel}")
        if self.conv_kernel and not self.bottleneck_dim:
            raise problem(f"conv_kernel: {self.conv_kernel} needs a bottleneck, but bottleneck_dim is 0")
        return self

    @property
    def is_held(self) -> bool:
        return self.bottleneck_dim > 0

    def shapes(self, backbone: BackboneSpec) -> Shapes:
        d, r = backbone.hidden_size, self.bottleneck_dim
        parts: Shapes = {"down.weight": (r, d), "down.bias": (r,), "up.weight": (d, r), "up.bias": (d,)}
        parts |= {"norm.weight": (d,), "norm.bias": (d,)} if self.adapter_norm else {}
        parts |= {"conv.weight": (r, self.conv_kernel), "conv.bias": (r,)} if self.conv_kernel else {}
        return each_layer(backbone, {f"adapter.{name}": shape for name, shape in parts.items()})

    def hold(self, source: Source) -> Iterable[Holding]:
        """Zeros around a smaller bottleneck change nothing: `up` is zero where `down` is. The scale goes into `up`."""
        width, scale, spec = size_class(self.bottleneck_dim), self.adapter_scale, source.backbone.spec
        tensors = {
            "down_weight": source.stack("adapter.down.weight").transpose(1, 2),  # [L, D, R]
            "down_bias": source.stack("adapter.down.bias").unsqueeze(1),  # [L, 1, R]
            "up_weight": source.stack("adapter.up.weight").transpose(1, 2) * scale,  # [L, R, D]
            "up_bias": source.stack("adapter.up.bias").unsqueeze(1) * scale,  # [L, 1, D]
        }
        if self.adapter_residual:
            tensors["residual"] = tensors["up_bias"].new_ones(spec.num_hidden_layers, 1, 1)
        if self.adapter_norm:
            tensors["norm_weight"] = source.stack("adapter.norm.weight").unsqueeze(1)  # [L, 1, D]
            tensors["norm_bias"] = source.stack("adapter.norm.bias").unsqueeze(1)
        if self.conv_kernel:
            tensors["conv_weight"] = source.stack("adapter.conv.weight")  # [L, R, K]
            tensors["conv_bias"] = source.stack("adapter.conv.bias").unsqueeze(1)  # [L, 1, R]
        convolution = (self.conv_kernel, spec.special_tokens, spec.bands) if self.conv_kernel else None
        is_last = self.adapter_place == "sequential"
        kind = Kind(width, self.adapter_residual, self.adapter_activation, is_last, self.adapter_norm, convolution)
        yield Holding(PLACE, kind, tensors, self.bottleneck_dim, _ALONG).padded(width)

    def initialise(self, name: str, parameter: Tensor) -> None:
        # Up-projections and biases start at zero, so that training starts from the backbone's own answers.
        if name.endswith("down.weight"):
            nn.init.kaiming_uniform_(parameter, a=5**0.5)
        elif name.endswith("norm.weight"):
            nn.init.ones_(parameter)
        elif name.endswith("conv.weight"):  # the identity, so that training starts at the plain bottleneck
            parameter[:, parameter.shape[1] // 2] = 1.0


@dataclass(frozen=True, slots=True)
class Kind:
    """What bottlenecks of one group have in common."""

    width: int
    residual: bool
    activation: str
    is_last: bool  # behind the feed-forward, whose output it reads
    norm: bool
    convolution: tuple[int, int, int] | None  # its kernel, and the special tokens and bands of the sequence


def add_bottlenecks(
    groups: Sequence[Group], layer: int, x: Tensor, fed: Tensor, out: Tensor, dropout: float = 0.0
) -> Tensor:
    """`out` with each row's `a(x)` of its own bottleneck added; all `[B, T, D]`, float32 (contract, sections 3 and 5).

    Args:
        fed: the feed-forward's output, which sequential ones read instead of `x`.
        dropout: inside the bottleneck, in training only.
    """
    for group in groups:
        read = group.rows.take(fed if group.kind.is_last else x)
        out = group.rows.add(out, _bottleneck(group.kind, group.gather(layer), read, dropout))
    return out


def _bottleneck(kind: Kind, own: Mapping[str, Tensor], x: Tensor, dropout: float) -> Tensor:
    read = x
    if kind.norm:
        read = functional.layer_norm(x.float(), x.shape[-1:])
        read = torch.addcmul(own["norm_bias"].float(), read, own["norm_weight"].float())
    down = own["down_weight"]
    hidden = torch.baddbmm(own["down_bias"], read.to(down.dtype), down)
    if kind.convolution is not None:
        hidden = convolve(hidden, own["conv_weight"], own["conv_bias"], *kind.convolution[1:])
    hidden = _ACTIVATIONS[kind.activation](hidden)
    if dropout:
        hidden = functional.dropout(hidden, dropout)
    out = torch.baddbmm(own["up_bias"], hidden, own["up_weight"]).float()
    return torch.addcmul(out, x, own["residual"].float()) if kind.residual else out


def convolve(x: Tensor, weight: Tensor, bias: Tensor, special: int, bands: int) -> Tensor:
    """Bottlenecks before their activation, `[C, T, R]` -> `[C, T, R]`, with kernels `[C, R, K]` and biases `[C, 1, R]`.

    Every row and channel is a group of one convolution.

    Args:
        special: tokens in front, which pass it by; there may be no others.
        bands: of the frames behind them, each convolved by itself.
    """
    frames, kernel = x[:, special:], weight.shape[2]
    rows, length, width = frames.shape
    if not length:
        return x
    channels = frames.reshape(rows, bands, length // bands, width).permute(1, 0, 3, 2)  # [bands, C, R, frames]
    convolved = functional.conv1d(
        channels.reshape(bands, rows * width, -1),
        weight.reshape(rows * width, 1, kernel),
        bias.reshape(rows * width),
        padding=kernel // 2,
        groups=rows * width,
    )
    convolved = convolved.view(bands, rows, width, -1).permute(1, 0, 3, 2).reshape(rows, length, width).to(x.dtype)
    return torch.cat((x[:, :special], convolved), dim=1) if special else convolved
