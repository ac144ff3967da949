"""Waveform -> the tensors that a backbone reads: features, windows, normalisation."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from service.audio.filter_bank import FRAME_SAMPLES, HOP_SAMPLES, MEL_BINS, fbank, frame_count
from service.audio.waveform import SAMPLING_RATE, Waveform

NORMALIZE_EPS = 1e-7


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What an adapter asks of a clip (contract, section 2, `input`).

    Args:
        window_frames: length of a window, in hops of 10 ms.
        windows: number of evenly spaced windows; None for one every `hop_frames`.
        hop_frames: distance of windows where `windows` is None; None for the window itself.
        mean, std: the filter bank becomes `(x - mean) / (2 * std)`; the defaults leave it as it is.
        short: what fills a clip that is shorter than the window.
        whole: the window is the whole clip, to the sample, up to `window_frames`.
        normalize: each window's own samples, before filling, become `(x - mean) / sqrt(var + 1e-7)`; not for AST.
    """

    window_frames: int
    windows: int | None = 1
    hop_frames: int | None = None
    mean: float = 0.0
    std: float = 0.5
    short: Literal["zeros", "repeat"] = "zeros"
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
    frames: int = 0


def window_count(length: int, window: int, windows: int | None, hop: int | None) -> int:
    """How many `window_starts` there are, by arithmetic: ten thousand cost no more than one."""
    last = length - window
    if last <= 0:
        return 1
    return windows if windows is not None else -(-last // (window if hop is None else hop)) + 1


def window_starts(length: int, window: int, windows: int | None, hop: int | None) -> list[int]:
    """First positions of the windows in a clip of `length`; all four in the same unit.

    A clip that is no longer than the window has one window, whatever was asked: more would all be the same.
    """
    last = length - window
    if last <= 0:
        return [0]
    if windows is not None:
        return [int(start) for start in np.linspace(0, last, windows)]
    starts = list(range(0, last + 1, hop if hop is not None else window))
    return starts if starts[-1] == last else [*starts, last]


class Features(ABC):
    """What the front end of one architecture reads of a clip. Held by its backbone; has no state.

    Windows are cut from the features of the whole clip, in positions of `hop` samples.
    """

    hop: int  # samples from one position to the next
    least: int  # positions that a window of a whole clip has, shorter clips being filled

    @abstractmethod
    def length(self, samples: int) -> int:
        """Positions in a clip of so many samples."""

    @abstractmethod
    def shape(self, window_frames: int) -> tuple[int, ...]:
        """Of one window: `[frames, 128]` or `[samples]`."""

    @abstractmethod
    def window_samples(self, window_frames: int) -> int:
        """Samples that fill a window."""

    @abstractmethod
    def whole(self, samples: Tensor) -> Tensor:
        """Features of a clip `[N]`, float32 `[length, ...]`, without normalisation."""

    def normalise(self, features: Tensor, spec: InputSpec) -> Tensor:
        """Features as the backbone reads them."""
        return features

    def count(self, samples: int, spec: InputSpec) -> int:
        """Number of windows of a clip of so many samples, without computing any."""
        return window_count(self.length(samples), *self._layout(spec, self.length(samples)))

    def window_frames(self, samples: int, spec: InputSpec) -> int:
        """Length of the windows of a clip of so many samples, in hops of 10 ms, rounded up."""
        window, _, _ = self._layout(spec, self.length(samples))
        return -(-window // (HOP_SAMPLES // self.hop))

    def windows(self, samples: Tensor, spec: InputSpec, whole: Tensor | None = None) -> Windows:
        """Windows of a clip `[N]`; `whole` is what the method of this name gave, where it is there already."""
        features = self.whole(samples) if whole is None else whole
        window, windows, hop = self._layout(spec, len(features))
        starts = window_starts(len(features), window, windows, hop)
        cut = self.cut(features, starts, window, spec)
        return Windows(cut, _spans(starts, window, self.hop, len(samples)), self.window_frames(len(samples), spec))

    def cut(self, features: Tensor, starts: list[int], window: int, spec: InputSpec) -> Tensor:
        """Windows `[W, window, ...]` as the backbone reads them, filled and normalised."""
        return _cut(self.normalise(_fill(features, window, spec.short), spec), starts, window)

    def _layout(self, spec: InputSpec, length: int) -> tuple[int, int | None, int | None]:
        """Length, number and distance of windows of a clip of `length`, lengths in positions."""
        scale = HOP_SAMPLES // self.hop
        if spec.whole:
            return min(max(length, self.least), spec.window_frames * scale), 1, None
        return spec.window_frames * scale, spec.windows, None if spec.hop_frames is None else spec.hop_frames * scale


class FilterBank(Features):
    """AST's: the log mel filter bank, normalised."""

    hop = HOP_SAMPLES
    least = 16

    def length(self, samples: int) -> int:
        return frame_count(samples)

    def shape(self, window_frames: int) -> tuple[int, ...]:
        return (window_frames, MEL_BINS)

    def window_samples(self, window_frames: int) -> int:
        return window_frames * HOP_SAMPLES + FRAME_SAMPLES - HOP_SAMPLES  # a frame reaches beyond its hop

    def whole(self, samples: Tensor) -> Tensor:
        return fbank(samples)

    def normalise(self, features: Tensor, spec: InputSpec) -> Tensor:
        return (features - spec.mean) / (2 * spec.std)


class PlainSamples(Features):
    """wav2vec 2.0's: the samples as they are, or normalised window by window."""

    hop = 1
    least = 5 * HOP_SAMPLES

    def length(self, samples: int) -> int:
        return samples

    def shape(self, window_frames: int) -> tuple[int, ...]:
        return (window_frames * HOP_SAMPLES,)

    def window_samples(self, window_frames: int) -> int:
        return window_frames * HOP_SAMPLES

    def whole(self, samples: Tensor) -> Tensor:
        return samples.to(torch.float32)

    def cut(self, features: Tensor, starts: list[int], window: int, spec: InputSpec) -> Tensor:
        if not spec.normalize:
            return super().cut(features, starts, window, spec)
        if len(features) < window:
            return _fill(_zero_mean_unit_variance(features[None])[0], window, spec.short)[None]
        return _zero_mean_unit_variance(_cut(features, starts, window))


FILTER_BANK = FilterBank()
PLAIN_SAMPLES = PlainSamples()


def _zero_mean_unit_variance(windows: Tensor) -> Tensor:
    """`(x - mean) / sqrt(var + 1e-7)` of each row `[W, N]`, as Hugging Face's extractors with `do_normalize`."""
    variance, mean = torch.var_mean(windows.double(), dim=1, keepdim=True, correction=0)
    return ((windows.double() - mean) / (variance + NORMALIZE_EPS).sqrt()).float()


def _fill(clip: Tensor, length: int, short: Literal["zeros", "repeat"]) -> Tensor:
    """Lengthen a clip `[T, ...]` to the window: with zeros behind it, or by playing it again and again."""
    missing = length - len(clip)
    if missing <= 0:
        return clip
    if short == "zeros":
        return torch.cat((clip, clip.new_zeros(missing, *clip.shape[1:])))
    times = -(-length // len(clip))
    return clip.repeat(times, *(1 for _ in clip.shape[1:]))[:length]


def _cut(clip: Tensor, starts: list[int], length: int) -> Tensor:
    if len(starts) == 1:
        return clip[starts[0] : starts[0] + length].unsqueeze(0)
    return torch.stack([clip[start : start + length] for start in starts])


def _spans(starts: list[int], length: int, unit: int, samples: int) -> tuple[tuple[float, float], ...]:
    """Positions in `unit` samples -> seconds, none past the end of the clip."""
    end = samples / SAMPLING_RATE
    seconds = unit / SAMPLING_RATE
    return tuple((start * seconds, min((start + length) * seconds, end)) for start in starts)


class ClipFeatures:
    """The features of one clip for the life of a request, each computed once however many adapters read it.

    Adapters with equal `InputSpec` get the same `Windows` object. For one thread at a time.
    """

    __slots__ = ("_features", "_samples", "_whole", "_windows")

    def __init__(self, waveform: Waveform, features: Features) -> None:
        self._features = features
        self._samples = torch.from_numpy(waveform.samples)
        self._whole: Tensor | None = None
        self._windows: dict[InputSpec, Windows] = {}

    def count(self, spec: InputSpec) -> int:
        """Number of windows that `windows` would give, without computing any."""
        return self._features.count(len(self._samples), spec)

    def window_frames(self, spec: InputSpec) -> int:
        """Length of each of them, in hops of 10 ms."""
        return self._features.window_frames(len(self._samples), spec)

    def windows(self, spec: InputSpec) -> Windows:
        """The windows that an adapter with this `spec` reads."""
        if spec not in self._windows:
            if self._whole is None:
                self._whole = self._features.whole(self._samples)
            self._windows[spec] = self._features.windows(self._samples, spec, self._whole)
        return self._windows[spec]
