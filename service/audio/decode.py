"""Bytes of an untrusted audio file -> `Waveform`, bounded in time, memory and reach.

What the bytes are is told by their first ones; then only what reads such files sees them. Channels are averaged and the
rate is converted while decoding, so that no more than a block of the source's own rate and channels is ever held.
"""

from typing import Final

import av

from service.audio import hostile, truncation
from service.audio.containers import ACCEPTED, Container, sniff
from service.audio.ffmpeg import decode_stream
from service.audio.mixdown import DEFAULT_LIMITS, PADDING_SECONDS, DecodeLimits, Mixdown
from service.audio.ogg import split_links
from service.audio.source import Patience
from service.audio.wav import decode_wav
from service.audio.waveform import Waveform
from service.errors import BadAudio, InvalidRequest, NotReady

__all__ = ["DEFAULT_LIMITS", "PADDING_SECONDS", "DecodeLimits", "decode"]

NEEDED_BYTES: Final = 2**26  # more than decoding any accepted clip takes at once
_REASONS: Final = {  # FFmpeg's own words are for its developers
    av.EOFError: "it ends before its audio does",
    av.PatchWelcomeError: "it uses a feature that is not supported",
    av.NotImplementedError: "it uses a feature that is not supported",
    av.MemoryError: "it asks for more memory than any clip needs",
}


def decode(encoded: bytes, limits: DecodeLimits = DEFAULT_LIMITS) -> Waveform:
    """Decode one clip to the mean of its channels at 16 kHz. Thread-safe.

    Raises:
        InvalidRequest: no bytes at all.
        BadAudio: not an accepted file, damaged, cut off, out of bounds, or shorter than 25 ms.
        AudioTooLong: more than `limits.max_seconds`.
        NotReady: this machine has no memory left to decode it.
    """
    if not encoded:
        raise InvalidRequest("the clip is empty; send an audio file: " + ACCEPTED)
    try:
        return _decode(encoded, limits)
    except av.FFmpegError as error:
        if isinstance(error, MemoryError) and not _has_memory():
            raise _no_memory() from error
        title = sniff(encoded).container.title
        reason = next(
            (words for kind, words in _REASONS.items() if isinstance(error, kind)), "its contents are invalid"
        )
        raise BadAudio(f"the {title} file cannot be decoded: {reason}; it is damaged, or no {title} file") from error
    except MemoryError as error:
        raise _no_memory() from error


def _decode(encoded: bytes, limits: DecodeLimits) -> Waveform:
    sniffed = sniff(encoded)
    container = sniffed.container
    encoded = encoded[sniffed.start :] if sniffed.start else encoded
    if container is Container.WAV:
        return decode_wav(encoded, limits)
    hostile.check_container(encoded, container)
    truncation.check_container(encoded, sniffed)
    mixdown = Mixdown(limits, slack=0.0 if container is Container.FLAC else PADDING_SECONDS)
    patience = Patience(encoded)
    for link in split_links(encoded) if container is Container.OGG else [encoded]:
        decode_stream(link, container, limits, mixdown, patience)
        mixdown.end()
    return mixdown.finish()


def _has_memory() -> bool:
    """Whether a failed allocation was the file's fault: FFmpeg does not say, but another one does."""
    try:
        bytearray(NEEDED_BYTES)
    except MemoryError:
        return False
    return True


def _no_memory() -> NotReady:
    return NotReady("this server has no memory left to decode the clip; try again later", retry_after=1.0)
