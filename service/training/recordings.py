"""Reads recordings as training wants them: decoded as the server would, kept in memory, faulty ones named and left out.

Knows neither targets nor models.
"""

import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.audio.decode import DecodeLimits, decode
from service.audio.waveform import SAMPLING_RATE, Waveform
from service.errors import ServiceError

logger = logging.getLogger(__name__)

MEMORY_SECONDS = 12 * 3600.0  # of audio kept decoded: 2.8 GB
LIMITS = DecodeLimits(max_seconds=3600.0)
THREADS = 2
NAMED_FAULTS = 20  # faulty files named one by one in the log, and at most in the card

Samples = NDArray[np.float32]


class Recordings:
    """Decoded clips by path. What does not fit into memory is decoded again each time.

    Attributes:
        faults: files that could not be read, with the reason.
    """

    def __init__(self, memory_seconds: float = MEMORY_SECONDS) -> None:
        self.faults: dict[Path, str] = {}
        self._kept: dict[Path, Waveform] = {}
        self._room = int(memory_seconds * SAMPLING_RATE)  # samples

    def waveform(self, path: Path) -> Waveform:
        """One clip, decoded.

        Raises:
            OSError: the file cannot be opened.
            ServiceError: it holds no audio that the server would take.
        """
        kept = self._kept.get(path)
        if kept is not None:
            return kept
        waveform = decode(path.read_bytes(), LIMITS)
        if len(waveform.samples) <= self._room:
            self._room -= len(waveform.samples)
            self._kept[path] = waveform
        return waveform

    def samples(self, path: Path) -> Samples:
        """Samples `[N]` of one clip; raises as `waveform` does."""
        return self.waveform(path).samples

    def readable(self, paths: Iterable[Path]) -> Iterator[Path]:
        """Decode every path once, in order; the faulty ones are logged, remembered in `faults` and left out."""
        with ThreadPoolExecutor(THREADS) as pool:
            for path, fault in pool.map(self._try, dict.fromkeys(paths)):
                if fault is None:
                    yield path
                    continue
                if len(self.faults) < NAMED_FAULTS:
                    logger.warning("skipped %s: %s", path, fault)
                self.faults[path] = fault

    def _try(self, path: Path) -> tuple[Path, str | None]:
        try:
            self.waveform(path)
        except OSError as error:
            return path, error.strerror or str(error)
        except ServiceError as error:
            return path, error.detail
        return path, None
