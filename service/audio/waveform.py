"""What a decoded clip is. Knows nothing of containers, features or models."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SAMPLING_RATE = 16_000  # Hz, of everything behind the decoder
MIN_SAMPLES = 400  # 25 ms: one analysis frame; shorter clips are refused


@dataclass(frozen=True, slots=True)
class Waveform:
    """One clip, mono at 16 kHz.

    Args:
        samples: float32 `[N]`, the mean of the channels, nominally within [-1, 1].
        source_rate: sampling rate of the encoded clip, Hz.
        channels: channels of the encoded clip.
    """

    samples: NDArray[np.float32]
    source_rate: int
    channels: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLING_RATE
