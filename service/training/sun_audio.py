"""Sun's .au files, GTZAN's original format: 16-bit linear samples behind a short header.

For training only, on files of one's own: the service does not accept them.
"""

import struct

import numpy as np
from numpy.typing import NDArray

from service.audio.decode import DEFAULT_LIMITS, DecodeLimits
from service.audio.wav import PCM, Uncompressed, mix_down
from service.errors import BadAudio

MAGIC = b".snd"
LINEAR_16 = 3  # the header's number of the encoding


def decode_sun(encoded: bytes, limits: DecodeLimits = DEFAULT_LIMITS) -> NDArray[np.float32]:
    """The mean of the channels at 16 kHz. Raises BadAudio and AudioTooLong."""
    if len(encoded) < 24 or not encoded.startswith(MAGIC):
        raise BadAudio("the clip is not a Sun .au file")
    offset, _, encoding, rate, channels = struct.unpack(">5I", encoded[4:24])
    if encoding != LINEAR_16:
        raise BadAudio(f"the .au file has encoding {encoding}; 16-bit linear, {LINEAR_16}, is read")
    return mix_down(Uncompressed(PCM, 2, ">", rate, channels, memoryview(encoded)[offset:]), limits).samples
