"""Samples of any rate and channel count in, 16 kHz mono out: averages channels, checks bounds, resamples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from service.audio.waveform import MIN_SAMPLES, SAMPLING_RATE, Waveform
from service.errors import AudioTooLong, BadAudio, ClipTooShort

RESAMPLER_QUALITY = "HQ"  # 20 bits; VHQ's 28 are below the noise of 16-bit audio, at the same speed
PADDING_SECONDS = 0.1  # by which encoders of lossy formats lengthen a clip
LARGEST_SAMPLE = 2.0**31  # beyond every integer scale; larger ones overflow float32 when squared and summed


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What a clip may be.

    Args:
        max_seconds: longest clip, seconds.
        min_rate, max_rate: sampling rate of the encoded clip, Hz.
        max_channels: channels of the encoded clip.
        max_decoded_bytes: samples of all channels at the source's rate, 4 bytes each.
    """

    max_seconds: float = 300.0
    min_rate: int = 4_000
    max_rate: int = 192_000
    max_channels: int = 8
    max_decoded_bytes: int = 2**29

    def check_shape(self, rate: int, channels: int) -> None:
        """Raise BadAudio for a sampling rate or a channel count out of bounds."""
        if not self.min_rate <= rate <= self.max_rate:
            raise BadAudio(f"the sampling rate is {rate} Hz; {self.min_rate} to {self.max_rate} Hz are accepted")
        if not 1 <= channels <= self.max_channels:
            raise BadAudio(f"the clip has {channels} channels; 1 to {self.max_channels} are accepted")

    def too_long(self, length: str) -> AudioTooLong:
        return AudioTooLong(f"the clip lasts {length}; at most {self.max_seconds:g} s are accepted")


DEFAULT_LIMITS = DecodeLimits()


class Mixdown:
    """One clip on its way to a `Waveform`: its parts one by one, each by `begin`, `add`, `end`; then `finish`.

    Args:
        slack: seconds by which the clip may pass the limit, which a lossy encoder adds.
        sink: takes the samples at 16 kHz as they come, which are kept for a waveform without it.
    """

    def __init__(
        self,
        limits: DecodeLimits,
        slack: float = 0.0,
        sink: Callable[[NDArray[np.float32]], None] | None = None,
    ) -> None:
        self.limits = limits
        self.slack = slack
        self.rate = 0  # Hz, of the part that comes in; 0 between parts
        self.channels = 0
        self._produced = 0  # samples of each channel since `begin`, at the source's rate
        self.first: tuple[int, int] | None = None  # rate and channels that the clip began with
        self._before = 0.0  # seconds of the parts before
        self._decoded_bytes = 0
        self._resampler: soxr.ResampleStream | None = None
        self._blocks: list[NDArray[np.float32]] = []
        self._sink = self._blocks.append if sink is None else sink
        self._given = 0  # samples at 16 kHz

    @property
    def seconds(self) -> float:
        return self._before + (self._produced / self.rate if self.rate else 0.0)

    def begin(self, rate: int, channels: int) -> None:
        """A part of this rate and channel count comes."""
        self.limits.check_shape(rate, channels)
        self.rate, self.channels = rate, channels
        self.first = self.first or (rate, channels)
        if rate != SAMPLING_RATE:
            self._resampler = soxr.ResampleStream(rate, SAMPLING_RATE, 1, "float32", RESAMPLER_QUALITY)

    def check_room(self, samples: int) -> None:
        """Raise AudioTooLong where so many samples more would pass a limit; nothing of them need be there yet."""
        if self.seconds + samples / self.rate > self.limits.max_seconds + self.slack:
            raise self.limits.too_long(f"more than {self.limits.max_seconds:g} s")
        if self._decoded_bytes + samples * self.channels * 4 > self.limits.max_decoded_bytes:
            raise AudioTooLong(
                f"the clip decodes to more than {self.limits.max_decoded_bytes} bytes "
                f"({self.channels} channels at {self.rate} Hz); send it with fewer channels or at a lower rate"
            )

    def add(self, mono: NDArray[np.float32]) -> None:
        """Samples `[N]` at the source's rate, as `mean_of_channels` gives them; many at once cost less.

        Raises:
            BadAudio: a sample is no number, or beyond any scale.
            AudioTooLong: as `check_room`.
        """
        self.check_room(len(mono))
        if len(mono) and not (mono.max() <= LARGEST_SAMPLE and mono.min() >= -LARGEST_SAMPLE):
            raise BadAudio("the clip has samples that are not finite or beyond any scale; send samples within [-1, 1]")
        self._produced += len(mono)
        self._decoded_bytes += len(mono) * self.channels * 4
        self._give(mono if self._resampler is None else self._resampler.resample_chunk(mono))

    def end(self) -> None:
        """The part is complete."""
        if self._resampler is not None:
            self._give(self._resampler.resample_chunk(np.empty(0, np.float32), last=True))
        self._before, self._produced, self.rate = self.seconds, 0, 0
        self._resampler = None

    def _give(self, samples: NDArray[np.float32]) -> None:
        self._given += len(samples)
        self._sink(samples)

    def finish(self) -> Waveform:
        """The whole clip, after its last part; without its samples where a sink took them.

        Raises:
            ClipTooShort: fewer than 25 ms.
        """
        if self._given < MIN_SAMPLES:
            raise ClipTooShort(
                f"the clip has {self._given} samples at 16 kHz; at least {MIN_SAMPLES} (25 ms) are needed"
            )
        samples = np.concatenate(self._blocks) if self._blocks else np.empty(0, np.float32)
        rate, channels = self.first or (0, 0)
        return Waveform(samples, rate, channels)


def mean_of_channels(channels: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """The mean of channels `[N]` each, unsigned bytes and integers scaled to [-1, 1)."""
    dtype = channels[0].dtype
    with np.errstate(all="ignore"):  # what overflows is caught as not finite
        mono: NDArray[np.float32] = channels[0].astype(np.float32)
        for channel in channels[1:]:
            mono += channel
        if len(channels) > 1:
            mono /= np.float32(len(channels))
    if dtype.kind == "u":
        mono -= np.float32(128)
    if dtype.kind in "iu":
        mono *= np.float32(2.0 ** (1 - 8 * dtype.itemsize))
    return mono
