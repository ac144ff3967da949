"""What a FLAC stream states of its own samples: their number, their order and their checksum (RFC 9639, section 8.2).

The checksums of its frames are FFmpeg's to judge, but its parser passes over a frame that it cannot read.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import BadAudio

_STREAMINFO_BYTES = 34


class FlacSum:
    """Judges a FLAC stream by what its header and its frames state.

    Args:
        streaminfo: the content of the STREAMINFO block; anything else is never complained of.
        whole: whether the stream should be as long as the header says, and not a cut of it.
    """

    def __init__(self, streaminfo: bytes, whole: bool) -> None:
        known = len(streaminfo) == _STREAMINFO_BYTES
        packed = int.from_bytes(streaminfo[10:18]) if known else 0
        self._bits = (packed >> 36 & 31) + 1
        self._total = packed & (2**36 - 1)  # 0 where the writer did not know
        self._told = streaminfo[18:] if known else bytes(16)  # zeros where the writer did not know
        self._whole = whole
        self._samples = 0
        self._md5 = hashlib.md5(usedforsecurity=False)

    def follow(self, places: Sequence[int | None], lengths: Sequence[int]) -> None:
        """Raise BadAudio where frames, next to be added, do not lie where their numbers say, if they do."""
        at = self._samples
        for place, length in zip(places, lengths, strict=True):
            if self._whole and place not in (None, at):
                raise BadAudio(f"the flac file is damaged: sample {place} follows {at}")
            at += length

    def add(self, channels: Sequence[NDArray[Any]]) -> None:
        """Integers `[N]` of each channel, left-justified in their 16 or 32 bits."""
        self._samples += len(channels[0])
        if any(self._told):
            together = np.ascontiguousarray(channels[0]) if len(channels) == 1 else np.stack(channels, axis=-1)
            width, unused = -(-self._bits // 8), 8 * together.itemsize - self._bits
            together = together >> unused if unused else together
            raw = together.view(np.uint8).reshape(-1, together.itemsize)
            self._md5.update(np.ascontiguousarray(raw[:, :width]).data)

    def check(self) -> None:
        """Judge the stream after its last samples.

        Raises:
            BadAudio
        """
        if self._whole and self._samples < self._total:
            raise BadAudio(
                f"the flac file is cut off or damaged: it has {self._samples} of {self._total} samples; send it whole"
            )
        complete = self._samples == self._total or (self._whole and not self._total)
        if complete and any(self._told) and self._md5.digest() != self._told:
            raise BadAudio("the flac file is damaged: its samples do not have the checksum that it states")
        if self._whole and self._samples > self._total > 0:
            raise BadAudio(f"the flac file is damaged: it has {self._samples} samples, and states {self._total}")
