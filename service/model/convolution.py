"""The depthwise convolution over time inside a bottleneck, as in a Conformer's layer (arXiv 2005.08100, section 2.2).

`hidden = relu(conv(down(x)))`: each of the bottleneck's channels is convolved with a kernel of its own. A frame meets
its neighbours in its own row only, and zeros beyond the row's ends. Knows no adapters.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from service.model.rows import RowSubset


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """How a sequence of tokens lies in time.

    Args:
        special: tokens in front that stand for no time; they pass the convolution by.
        bands: runs of frames behind each other, each convolved by itself (AST: one for each row of patches).
    """

    special: int = 0
    bands: int = 1


@dataclass(frozen=True, slots=True)
class RowConvolution:
    """The convolutions of those rows of a batch that have one; the others pass as they are."""

    weight: Tensor  # [C, R, K], K odd or centred zeros around an odd kernel
    bias: Tensor  # [C, 1, R]
    rows: RowSubset
    layout: TokenLayout

    def __call__(self, x: Tensor) -> Tensor:
        """Bottlenecks before their activation, `[B, T, R]` -> `[B, T, R]`."""
        chosen = self.rows.take(x)
        frames = chosen[:, self.layout.special :]
        convolved = self._convolve(frames).to(x.dtype)
        if self.layout.special:
            convolved = functional.pad(convolved, (0, 0, self.layout.special, 0))
            convolved[:, : self.layout.special] = chosen[:, : self.layout.special]
        return self.rows.put(x, convolved)

    def _convolve(self, frames: Tensor) -> Tensor:
        """`[C, bands * frames, R]` -> the same; every row and channel is a group of one convolution."""
        rows, length, width = frames.shape
        bands, kernel = self.layout.bands, self.weight.shape[2]
        channels = frames.view(rows, bands, length // bands, width).permute(1, 0, 3, 2)  # [bands, C, R, frames]
        convolved = functional.conv1d(
            channels.reshape(bands, rows * width, -1),
            self.weight.reshape(rows * width, 1, kernel),
            self.bias.reshape(rows * width),
            padding=kernel // 2,
            groups=rows * width,
        )
        return convolved.view(bands, rows, width, -1).permute(1, 0, 3, 2).reshape(rows, length, width)


@dataclass(frozen=True, slots=True)
class ConvolvedRows:
    """Those rows of a batch whose bottlenecks convolve."""

    kernel: int  # longest among them
    slots: Tensor  # [C]
    rows: RowSubset
    layout: TokenLayout

    def layer(self, weights: Tensor, biases: Tensor, width: int) -> RowConvolution:
        """One layer's convolutions, from its stacks `[S, R, K]` and `[S, 1, R]`; of bottlenecks `width` wide."""
        start = (weights.shape[2] - self.kernel) // 2  # kernels lie centred in their slots
        return RowConvolution(
            weight=weights[:, :width, start : start + self.kernel].index_select(0, self.slots),
            bias=biases[:, :, :width].index_select(0, self.slots),
            rows=self.rows,
            layout=self.layout,
        )
