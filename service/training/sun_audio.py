"""Sun's .au files, GTZAN's original format: 16-bit linear samples behind a short header.

For training only, on files of one's own: the service does not accept them.
"""

import struct

import numpy as np
import soxr
from numpy.typing import NDArray

from service.audio.waveform import MIN_SAMPLES, SAMPLING_RATE
from service.errors import BadAudio, ClipTooShort

MAGIC = b".snd"
LINEAR_16 = 3  # the header's number of the encoding
RATES = (4_000, 192_000)  # Hz


def decode_sun(encoded: bytes) -> NDArray[np.float32]:
    """The mean of the channels at 16 kHz. Raises BadAudio."""
    if len(encoded) < 24 or not encoded.startswith(MAGIC):
        raise BadAudio("the clip is not a Sun .au file")
    offset, _, encoding, rate, channels = struct.unpack(">5I", encoded[4:24])
    if encoding != LINEAR_16 or not RATES[0] <= rate <= RATES[1] or not 1 <= channels <= 8:
        raise BadAudio(f"the .au file has encoding {encoding}, {rate} Hz, {channels} channels; 16-bit linear is read")
    body = encoded[offset:]
    frames = np.frombuffer(body[: len(body) // (2 * channels) * 2 * channels], ">i2").reshape(-1, channels)
    mono = frames.astype(np.float32).mean(axis=1) / 2**15
    samples: NDArray[np.float32] = soxr.resample(mono, rate, SAMPLING_RATE).astype(np.float32)
    if len(samples) < MIN_SAMPLES:
        raise ClipTooShort(f"the clip has {len(samples)} samples at 16 kHz; at least {MIN_SAMPLES} are needed")
    return samples
