"""A long grouped convolution by way of the Fourier transform: overlap-save, in float32.

wav2vec 2.0's position embedding convolves 48 channels with 128 taps in each of 16 groups: 600 MFLOP for 63 frames,
a twentieth of that in the frequency domain. For inference; the weights' transform takes no gradients.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from service.model.backbones.front_end import PositionConvolution

_BLOCK = 2  # a block's length in kernels, rounded up to a power of two


@dataclass(frozen=True, slots=True)
class FourierConvolution:
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
