"""A recording as it comes -> the windows that adapters read, cut from a buffer that holds little more than a window."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from service.audio.features import Features, InputSpec, Layout, Windows
from service.audio.filter_bank import HOP_SAMPLES
from service.audio.waveform import MIN_SAMPLES, SAMPLING_RATE
from service.errors import ClipTooShort


@dataclass(frozen=True, slots=True)
class Cut:
    """Windows that follow one another, by the spec of this index.

    Args:
        number: of the first of them in the recording.
    """

    spec: int
    number: int
    windows: Windows


class MovingWindows:
    """The windows of one recording: one every `hop_frames`, the last flush with the end.

    Whatever pieces it comes in, each is what the whole-clip path cuts. The spec's own `windows` and `hop_frames` do not
    count, and a window that is the whole clip is, but in a shorter recording, as long as such a window may be.

    Args:
        hop_frames: from one window's start to the next one's, in hops of 10 ms.
        first: number of the first window that is wanted.
    """

    def __init__(self, features: Features, specs: Sequence[InputSpec], hop_frames: int, first: int = 0) -> None:
        self._features = features
        self._specs = specs
        self._moving = [replace(spec, windows=None, hop_frames=hop_frames, whole=False) for spec in specs]
        self._hop = hop_frames * HOP_SAMPLES // features.hop  # positions
        self._next = [first for _ in specs]  # number of the window to be cut next
        self._samples = 0
        self._rest = torch.empty(0)  # samples that no position was made of yet, or that the next one reads too
        self._buffer = torch.empty(0, *features.bins)  # [positions, *bins]
        self._begin = 0  # position of its first

    @property
    def seconds(self) -> float:
        """How much has come."""
        return self._samples / SAMPLING_RATE

    def add(self, samples: Tensor) -> None:
        """Takes the next samples `[N]`."""
        features = self._features
        self._samples += len(samples)
        rest = torch.cat((self._rest, samples)) if len(self._rest) else samples
        positions = max(0, (len(rest) - features.reach) // features.hop + 1)
        if positions:
            made = features.whole(rest[: (positions - 1) * features.hop + features.reach])
            kept = self._buffer[self._needed_from() - self._begin :]
            self._begin += len(self._buffer) - len(kept)
            self._buffer = torch.cat((kept, made))
        self._rest = rest[positions * features.hop :].clone()

    def take(self, most_frames: int) -> list[Cut]:
        """The next windows that are complete, for each spec up to so many window-frames; none where there are none."""
        cuts = []
        for index, layout in enumerate(self._layouts()):
            number = self._next[index]
            end = min(self._complete(layout), number + max(1, most_frames // layout.frames))
            if number < end:
                self._next[index] = end
                cuts.append(self._cut(index, layout, [at * self._hop for at in range(number, end)], number))
        return cuts

    def finish(self) -> list[Cut]:
        """The last windows, once nothing more comes and `take` has given all the others.

        Raises:
            ClipTooShort: there is not even one analysis frame.
        """
        if self._samples < MIN_SAMPLES:
            told = f"the recording has {self._samples} samples at 16 kHz; at least {MIN_SAMPLES} (25 ms) are needed"
            raise ClipTooShort(told)
        cuts = []
        for index, layout in enumerate(self._layouts()):
            number = self._complete(layout)
            if number == 0:  # shorter than the window
                layout = self._features.layout(self._samples, self._specs[index])
            last = max(0, layout.length - layout.window)
            if self._next[index] <= number and last > (number - 1) * self._hop:
                cuts.append(self._cut(index, layout, [last], number))
        return cuts

    def _layouts(self) -> list[Layout]:
        return [self._features.layout(self._samples, spec) for spec in self._moving]

    def _complete(self, layout: Layout) -> int:
        """How many windows lie in what has come."""
        return max(0, (layout.length - layout.window) // self._hop + 1)

    def _needed_from(self) -> int:
        """The first position that a window still reads: the next one's, or the last one's if nothing more came."""
        nexts = zip(self._next, self._layouts(), strict=True)
        starts = [min(number * self._hop, max(0, layout.length - layout.window)) for number, layout in nexts]
        return max(self._begin, min(starts))

    def _cut(self, index: int, layout: Layout, starts: list[int], number: int) -> Cut:
        read = self._buffer[starts[0] - self._begin : starts[-1] + layout.window - self._begin]
        inputs = self._features.cut(read, [at - starts[0] for at in starts], layout.window, self._specs[index])
        seconds = self._features.hop / SAMPLING_RATE
        spans = tuple((start * seconds, min((start + layout.window) * seconds, self.seconds)) for start in starts)
        return Cut(index, number, Windows(inputs, spans, layout.frames))
