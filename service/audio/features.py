"""Waveform -> the tensors that a backbone reads: features, windows, normalisation."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from service.audio.filter_bank import FRAME_SAMPLES, HOP_SAMPLES, MEL_BINS, fbank
from service.audio.waveform import SAMPLING_RATE

NORMALIZE_EPS = 1e-7
Fill = Literal["zeros", "repeat", "center"]  # of a clip that is shorter than the window


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What an adapter asks of a clip (contract, section 2, `input`).

    Args:
        window_frames: length of a window, in hops of 10 ms.
        windows: number of evenly spaced windows; None for one every `hop_frames`.
        hop_frames: distance of windows where `windows` is None; None for the window itself.
        mean, std: the filter bank becomes `(x - mean) / (2 * std)`; the defaults leave it as it is.
        short: what fills a clip that is shorter than the window: zeros behind or (`center`) around it, or itself again.
        whole: the window is the whole clip, to the sample, up to `window_frames`.
        normalize: each window's own samples, before filling, become `(x - mean) / sqrt(var + 1e-7)`; not for AST.
    """

    window_frames: int
    windows: int | None = 1
    hop_frames: int | None = None
    mean: float = 0.0
    std: float = 0.5
    short: Fill = "zeros"
    whole: bool = False
    normalize: bool = False


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows of one clip, ready for a backbone.

    Args:
        inputs: float32, `[W, frames, 128]` for AST, `[W, samples]` for wav2vec 2.0.
        spans: start and end of each window in the clip, seconds.
        frames: length of each window, in hops of 10 ms, rounded up.
    """

    inputs: Tensor
    spans: tuple[tuple[float, float], ...]
    frames: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the windows of one clip lie, in positions of `unit` samples.

    Args:
        length: of the clip.
        window: length of each.
        windows: number of evenly spaced ones; None for one every `hop`.
        hop: distance; None for the window itself.
    """

    length: int
    window: int
    windows: int | None
    hop: int | None
    unit: int = 1

    @property
    def frames(self) -> int:
        """Length of each window, in hops of 10 ms, rounded up."""
        return -(-self.window * self.unit // HOP_SAMPLES)

    @property
    def count(self) -> int:
        """How many `starts` there are, by arithmetic: ten thousand cost no more than one."""
        last = self.length - self.window
        if last <= 0:
            return 1
        return self.windows if self.windows is not None else -(-last // (self.hop or self.window)) + 1

    def starts(self) -> list[int]:
        """First positions of the windows.

        A clip that is no longer than the window has one window, whatever was asked: more would all be the same.
        """
        last = self.length - self.window
        if last <= 0:
            return [0]
        if self.windows is not None:
            return [int(start) for start in np.linspace(0, last, self.windows)]
        starts = list(range(0, last + 1, self.hop or self.window))
        return starts if starts[-1] == last else [*starts, last]


class Features(ABC):
    """What the front end of one architecture reads of a clip. Held by its backbone; has no state.

    Windows are cut from the features of the whole clip, in positions of `hop` samples.
    """

    hop: int  # samples from one position to the next
    reach: int  # samples that one position reads
    bins: tuple[int, ...]  # shape of one position
    least: int  # positions that a window of a whole clip has, shorter clips being filled

    @abstractmethod
    def whole(self, samples: Tensor) -> Tensor:
        """Features of a clip `[N]`, float32 `[length, *bins]`, without normalisation."""

    def shape(self, window_frames: int) -> tuple[int, ...]:
        """Of one window: `[frames, 128]` or `[samples]`."""
        return (window_frames * HOP_SAMPLES // self.hop, *self.bins)

    def window_samples(self, window_frames: int) -> int:
        """Samples that fill a window."""
        return window_frames * HOP_SAMPLES - self.hop + self.reach

    def layout(self, samples: int, spec: InputSpec) -> Layout:
        """Where the windows of a clip of so many samples lie."""
        length = max(0, (samples - self.reach) // self.hop + 1)
        scale = HOP_SAMPLES // self.hop
        longest = spec.window_frames * scale
        if spec.whole:
            return Layout(length, min(max(length, self.least), longest), 1, None, self.hop)
        return Layout(length, longest, spec.windows, spec.hop_frames and spec.hop_frames * scale, self.hop)

    def windows(
        self, samples: Tensor, spec: InputSpec, whole: Tensor | None = None, layout: Layout | None = None
    ) -> Windows:
        """Windows of a clip `[N]`; `whole` and `layout` are what the methods of these names gave, where it is there."""
        layout = layout or self.layout(len(samples), spec)
        starts = layout.starts()
        inputs = self.cut(self.whole(samples) if whole is None else whole, starts, layout.window, spec)
        seconds, end = self.hop / SAMPLING_RATE, len(samples) / SAMPLING_RATE
        spans = tuple((start * seconds, min((start + layout.window) * seconds, end)) for start in starts)
        return Windows(inputs, spans, layout.frames)

    @abstractmethod
    def cut(self, features: Tensor, starts: list[int], window: int, spec: InputSpec) -> Tensor:
        """Windows `[W, window, *bins]` as the backbone reads them, filled and normalised."""


class FilterBank(Features):
    """AST's: the log mel filter bank, normalised."""

    hop = HOP_SAMPLES
    reach = FRAME_SAMPLES
    bins = (MEL_BINS,)
    least = 16

    def whole(self, samples: Tensor) -> Tensor:
        return fbank(samples)

    def cut(self, features: Tensor, starts: list[int], window: int, spec: InputSpec) -> Tensor:
        return _cut((_fill(features, window, spec.short) - spec.mean) / (2 * spec.std), starts, window)


class PlainSamples(Features):
    """wav2vec 2.0's: the samples as they are, or normalised window by window."""

    hop = reach = 1
    bins = ()
    least = 5 * HOP_SAMPLES

    def whole(self, samples: Tensor) -> Tensor:
        return samples.to(torch.float32)

    def cut(self, features: Tensor, starts: list[int], window: int, spec: InputSpec) -> Tensor:
        if spec.normalize and len(features) < window:  # the one window, before it is filled
            return _fill(_zero_mean_unit_variance(features[None])[0], window, spec.short)[None]
        windows = _cut(_fill(features, window, spec.short), starts, window)
        return _zero_mean_unit_variance(windows) if spec.normalize else windows


FILTER_BANK = FilterBank()
PLAIN_SAMPLES = PlainSamples()


def _zero_mean_unit_variance(windows: Tensor) -> Tensor:
    """`(x - mean) / sqrt(var + 1e-7)` of each row `[W, N]`, as Hugging Face's extractors with `do_normalize`."""
    variance, mean = torch.var_mean(windows.double(), dim=1, keepdim=True, correction=0)
    return ((windows.double() - mean) / (variance + NORMALIZE_EPS).sqrt()).float()


def _fill(clip: Tensor, length: int, short: Fill) -> Tensor:
    """Lengthen a clip `[T, ...]` to the window: with zeros behind or around it, or by playing it again and again."""
    missing = length - len(clip)
    if missing <= 0:
        return clip
    if short == "repeat":
        times = -(-length // len(clip))
        return clip.repeat(times, *(1 for _ in clip.shape[1:]))[:length]
    before = missing // 2 if short == "center" else 0
    filled = clip.new_zeros(length, *clip.shape[1:])
    filled[before : before + len(clip)] = clip
    return filled


def _cut(clip: Tensor, starts: list[int], length: int) -> Tensor:
    if len(starts) == 1:
        return clip[starts[0] : starts[0] + length].unsqueeze(0)
    return torch.stack([clip[start : start + length] for start in starts])
