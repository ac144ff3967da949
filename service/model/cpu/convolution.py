"""Convolutions on a CPU: which dtype it computes rightly in, and long grouped ones by way of the Fourier transform."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from service.model.layers import PositionConvolution

_PROBED_FRAMES = 64
_BLOCK = 2  # a block's length of the transform in kernels, rounded up to a power of two
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


@dataclass(frozen=True, slots=True)
class FourierConvolution:
    """A long grouped convolution, overlap-save in float32, for inference: the kernels' transform takes no gradients.

    wav2vec 2.0's position embedding convolves 48 channels with 128 taps in each of 16 groups: 600 MFLOP for 63 frames,
    a twentieth of that in the frequency domain.
    """

    spectrum: Tensor  # [F * groups, in, out], complex: the kernels' transform
    bias: Tensor  # [D], float32
    groups: int
    kernel: int
    block: int  # length of the transform

    @classmethod
    def of(cls, plain: PositionConvolution) -> "FourierConvolution":
        width, inside, kernel = plain.weight.shape
        block = 1 << (_BLOCK * kernel - 1).bit_length()
        weight = plain.weight.detach().float().view(plain.groups, width // plain.groups, inside, kernel)
        spectrum = torch.fft.rfft(weight, n=block).conj()  # correlation, as convolutions of networks are
        spectrum = spectrum.permute(3, 0, 2, 1).resolve_conj().contiguous().flatten(0, 1)
        return cls(spectrum, plain.bias.float(), plain.groups, kernel, block)

    def __call__(self, hidden: Tensor) -> Tensor:
        """`[U, T, D]` -> `[U, T, D]`, float32."""
        batch, length, width = hidden.shape
        step = self.block - self.kernel + 1  # frames of a block that no wrapped frame touches
        blocks = -(-length // step)
        before = self.kernel // 2
        padding = (before, blocks * step + self.kernel - 1 - before - length)
        frames = functional.pad(hidden.float().transpose(1, 2), padding).unfold(2, self.block, step)
        spectrum = torch.fft.rfft(frames).transpose(1, 2)  # [U, blocks, D, F]
        spectrum = spectrum.reshape(batch * blocks, self.groups, width // self.groups, -1).permute(3, 1, 0, 2)
        product = torch.bmm(spectrum.flatten(0, 1), self.spectrum)  # [F * groups, U * blocks, out]
        product = product.view(-1, self.groups, batch * blocks, width // self.groups).permute(2, 1, 3, 0)
        convolved: Tensor = torch.fft.irfft(product, n=self.block)[..., :step]
        convolved = convolved.reshape(batch, blocks, width, step).transpose(2, 3).reshape(batch, blocks * step, width)
        return convolved[:, :length] + self.bias
