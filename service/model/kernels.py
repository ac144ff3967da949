"""What a backbone's frozen weights become when it is loaded: plain tensors, or the layout that one device likes best.

`PLAIN` runs everywhere, passes gradients on and is what every other choice is tested against. Knows no architecture.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from service.model.attention import Attend, attend_by_row, attend_fused
from service.model.cpu.convolution import FourierConvolution
from service.model.cpu.int8 import quantise_linear
from service.model.cpu.prepacked import prepack_convolution, prepack_linear
from service.model.layers import Convolution, Linear, Module, PositionConvolution, Projection

Weights = Literal["auto", "int8"]


@dataclass(frozen=True, slots=True)
class Kernels:
    """Makers of the parts of a forward, each from its plain form.

    Args:
        linear: a linear layer, with an activation behind it or none.
        convolution: a layer of wav2vec 2.0's front end.
        positions: wav2vec 2.0's position embedding.
        attend: attention over keys and values with a prefix for each row.
    """

    linear: Callable[[Linear], Projection]
    convolution: Callable[[Convolution], Module]
    positions: Callable[[PositionConvolution], Module]
    attend: Attend


PLAIN = Kernels(lambda linear: linear, lambda convolution: convolution, lambda positions: positions, attend_fused)


def pick_kernels(device: torch.device, dtype: torch.dtype, weights: Weights = "auto") -> Kernels:
    """The fastest kernels for inference. They take no gradients.

    Raises:
        ValueError: int8 weights for a device other than a CPU, or for one without oneDNN.
    """
    packs = device.type == "cpu" and torch._C._has_mkldnn
    if weights == "int8" and not packs:
        raise ValueError(f"int8 weights need a CPU with oneDNN; the device is {device}: use --weights auto")
    if not packs:
        return PLAIN
    half = dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    linear = quantise_linear if weights == "int8" else prepack_linear if half else PLAIN.linear
    return Kernels(
        linear=linear,
        convolution=prepack_convolution if half else PLAIN.convolution,
        positions=FourierConvolution.of,
        attend=attend_by_row if dtype is torch.bfloat16 else PLAIN.attend,
    )
