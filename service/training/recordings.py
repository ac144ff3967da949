"""Reads recordings as training wants them: decoded as the server would, kept in memory, faulty ones named and left out.

Knows neither targets nor models.
"""

import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.audio.decode import DecodeLimits, decode
from service.audio.waveform import SAMPLING_RATE
from service.errors import ClipTooShort, ServiceError
from service.training.cache import ArrayCache, identity
from service.training.sun_audio import decode_sun

logger = logging.getLogger(__name__)

MEMORY_SECONDS = 12 * 3600.0  # of audio kept decoded: 2.8 GB
LIMITS = DecodeLimits(max_seconds=3600.0)
THREADS = 2
NAMED_FAULTS = 20  # faulty files named one by one in the log, and at most in the card

Samples = NDArray[np.float32]


class Recordings:
    """Decoded clips by path. What does not fit into memory is decoded again each time, or read from the cache.

    Attributes:
        faults: files that could not be read, with the reason.
        short: those among them that are shorter than one analysis frame.
    """

    def __init__(self, memory_seconds: float = MEMORY_SECONDS, cache: ArrayCache | None = None) -> None:
        self.faults: dict[Path, str] = {}
        self.short: set[Path] = set()
        self._memory_seconds = memory_seconds
        self._cache = cache
        self._kept: dict[Path, Samples] = {}
        self._room = int(memory_seconds * SAMPLING_RATE)  # samples

    def __reduce__(self) -> tuple[Any, ...]:
        """A process that is not forked gets an empty one rather than hours of audio."""
        return Recordings, (self._memory_seconds, self._cache)

    def samples(self, path: Path) -> Samples:
        """Samples `[N]` of one clip, the mean of its channels at 16 kHz.

        Raises:
            OSError: the file cannot be opened.
            ServiceError: it holds no audio that the server would take.
        """
        kept = self._kept.get(path)
        if kept is not None:
            return kept
        if self._cache is None:
            samples = _decode(path)
        else:
            samples = self._cache.get(f"samples {identity(path)}", lambda: {"samples": _decode(path)})["samples"]
        if len(samples) <= self._room:
            self._room -= len(samples)
            self._kept[path] = samples
        return samples

    def readable(self, paths: Iterable[Path]) -> Iterator[Path]:
        """Decode every path once, in order; the faulty ones are logged, remembered in `faults` and left out."""
        with ThreadPoolExecutor(THREADS) as pool:
            for path, fault in pool.map(self._try, dict.fromkeys(paths)):
                if fault is None:
                    yield path
                else:
                    self.leave_out(path, fault)

    def leave_out(self, path: Path, reason: str) -> None:
        """Log and remember a file that cannot be read."""
        if path not in self.faults and len(self.faults) < NAMED_FAULTS:
            logger.warning("skipped %s: %s", path, reason)
        self.faults[path] = reason

    def _try(self, path: Path) -> tuple[Path, str | None]:
        try:
            self.samples(path)
        except OSError as error:
            return path, error.strerror or str(error)
        except ServiceError as error:
            if isinstance(error, ClipTooShort):
                self.short.add(path)
            return path, error.detail
        return path, None


def _decode(path: Path) -> Samples:
    encoded = path.read_bytes()
    return decode_sun(encoded, LIMITS) if path.suffix.lower() == ".au" else decode(encoded, LIMITS).samples
