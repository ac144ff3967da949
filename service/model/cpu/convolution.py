"""Convolutions that a CPU computes wrongly in half precision are found before they are used."""

import torch
from torch import Tensor
from torch.nn import functional

_PROBED_FRAMES = 64
_ROUNDING = 0.05  # relative error that a dtype may have: bfloat16 has 0.003


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
