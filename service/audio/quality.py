"""What may make a clip a bad witness of a voice: clipping, a low level, noise. Warnings only; nothing is changed."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.audio.waveform import SAMPLING_RATE

CLIPPED_LEVEL: Final = 0.985  # of full scale; resampling moves peaks a little
CLIPPED_SHARE: Final = 0.001  # of the samples
QUIET_DBFS: Final = -50.0  # root mean square
LEAST_SNR_DB: Final = 0.0
_FRAME: Final = SAMPLING_RATE // 50  # 20 ms
_FLOOR_PERCENTILE: Final = 10.0  # of the frames' powers: pauses, where only the noise is heard
_FEWEST_FRAMES: Final = 10


def quality_warnings(samples: NDArray[np.float32]) -> tuple[str, ...]:
    """`clipped`, `too_quiet` and `low_snr` where they hold of a clip `[N]` at 16 kHz."""
    power = float(np.mean(np.square(samples, dtype=np.float64))) if len(samples) else 0.0
    found = {
        "clipped": float(np.mean(np.abs(samples) >= CLIPPED_LEVEL)) > CLIPPED_SHARE if len(samples) else False,
        "too_quiet": power < 10 ** (QUIET_DBFS / 10),
        "low_snr": signal_to_noise_db(samples) < LEAST_SNR_DB,
    }
    return tuple(name for name, holds in found.items() if holds)


def signal_to_noise_db(samples: NDArray[np.float32]) -> float:
    """Power above the noise floor, against the floor: the level of a clip's quietest tenth. Infinite where unknown."""
    frames = len(samples) // _FRAME
    if frames < _FEWEST_FRAMES:
        return float("inf")
    powers = np.square(samples[: frames * _FRAME], dtype=np.float64).reshape(frames, _FRAME).mean(axis=1)
    floor = float(np.percentile(powers, _FLOOR_PERCENTILE))
    above = float(powers.mean()) - floor
    if floor <= 0.0:
        return float("inf")
    return 10 * float(np.log10(max(above, 1e-12 * floor) / floor))
