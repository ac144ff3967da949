"""Reads recordings as training wants them: decoded as the server would, kept in memory, faulty ones left out."""

import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
from numpy.typing import NDArray

from service.audio.decode import decode
from service.audio.mixdown import DecodeLimits, Mixdown, mean_of_channels
from service.audio.waveform import SAMPLING_RATE
from service.errors import BadAudio, ClipTooShort, ServiceError
from service.training.cache import ArrayCache
from service.training.datasets.dataset import Span

logger = logging.getLogger(__name__)

MEMORY_SECONDS = 12 * 3600.0  # of audio kept decoded: 2.8 GB
LIMITS = DecodeLimits(max_seconds=3600.0)
THREADS = 2
NAMED_FAULTS = 20  # faulty files named one by one in the log, and at most in the card

Samples = NDArray[np.float32]


class Recordings:
    """Decoded clips. What does not fit into memory is decoded again each time, or read from the cache. Thread-safe.

    Attributes:
        faults: clips that could not be read, with the reason.
    """

    def __init__(self, memory_seconds: float = MEMORY_SECONDS, cache: ArrayCache | None = None) -> None:
        self.faults: dict[Span, str] = {}
        self._cache = cache
        self._kept: dict[Span, Samples] = {}
        self._room = int(memory_seconds * SAMPLING_RATE)  # samples

    def samples(self, span: Span) -> Samples:
        """Samples `[N]` of one clip, the mean of its channels at 16 kHz.

        Raises OSError: the file cannot be opened; ServiceError: it holds no audio that the server would take.
        """
        kept = self._kept.get(span)
        if kept is not None:
            return kept
        if self._cache is None:
            samples = _decode(span)
        else:
            samples = self._cache.get(f"samples {identity(span)}", lambda: {"samples": _decode(span)})["samples"]
        if len(samples) <= self._room:
            self._room -= len(samples)
            self._kept[span] = samples
        return samples

    def readable(self, spans: Iterable[Span]) -> Iterator[Span]:
        """Decode every clip once, in order; the faulty ones are logged, remembered in `faults` and left out."""
        with ThreadPoolExecutor(THREADS) as pool:
            for span, fault in pool.map(self._try, dict.fromkeys(spans)):
                if fault is None:
                    yield span
                else:
                    self.leave_out(span, fault)

    def leave_out(self, span: Span, reason: str) -> None:
        """Log and remember a clip that cannot be read."""
        if span not in self.faults and len(self.faults) < NAMED_FAULTS:
            logger.warning("skipped %s: %s", span.path, reason)
        self.faults[span] = reason

    def _try(self, span: Span) -> tuple[Span, str | None]:
        try:
            self.samples(span)
        except OSError as error:
            return span, error.strerror or str(error)
        except ServiceError as error:
            return span, error.detail
        return span, None


def identity(span: Span) -> str:
    """What tells a clip's contents apart without reading them. Raises OSError."""
    status = span.path.stat()
    return f"{span.path.resolve()} {span.start} {span.end} {status.st_size} {status.st_mtime_ns}"


def _decode(span: Span) -> Samples:
    """A whole file as the server reads it; a stretch, or Sun's `.au` that it refuses, frame by frame.

    Raises as `Recordings.samples`.
    """
    if span == Span(span.path) and span.path.suffix.lower() != ".au":
        return decode(span.path.read_bytes(), LIMITS).samples
    try:
        with av.open(str(span.path)) as container:
            if not container.streams.audio:
                raise BadAudio("the file holds no audio")
            if span.start:
                container.seek(int(span.start * av.time_base))  # to a key frame before it
            try:
                return _stretch(container, span)
            except ClipTooShort as error:
                end, length = "its end" if span.end is None else f"{span.end:g} s", container.duration or 0
                told = f"from {span.start:g} s to {end} of a file of {length / av.time_base:.2f} s: {error.detail}"
                raise ClipTooShort(told) from None
    except av.FFmpegError as error:
        if isinstance(error, OSError) and not isinstance(error, av.InvalidDataError):
            raise
        raise BadAudio(f"the file cannot be decoded: {error.strerror}") from None


def _stretch(container: "av.container.InputContainer", span: Span) -> Samples:
    """The samples between a span's ends, from where the container stands on."""
    mixdown, end = Mixdown(LIMITS), float("inf") if span.end is None else span.end
    planes = av.AudioResampler(format="fltp")
    for frame in container.decode(audio=0):
        at = frame.time or 0.0
        if at >= end:
            break
        if not mixdown.rate:
            mixdown.begin(frame.sample_rate, frame.layout.nb_channels)
        first, last = (round((each - at) * frame.sample_rate) for each in (span.start, min(end, 1e9)))
        if last > 0 and first < frame.samples:
            (plain,) = planes.resample(frame)
            mixdown.add(mean_of_channels(list(plain.to_ndarray()[:, max(0, first) : last])))
    mixdown.end()
    return mixdown.finish().samples
