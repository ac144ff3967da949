"""Bytes of an untrusted audio file -> samples, bounded in time, memory and reach.

What the bytes are is told by their first ones; then only what reads such files sees them. Channels are averaged and the
rate is converted while decoding, so that no more than a block of the source's own rate and channels is ever held. A
recording is decoded as it comes; a clip is there as a whole, and is judged as a whole before any of it is decoded.
"""

import io
import math
import mmap
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, Protocol

import av

from service.audio import frames, mp4, ogg, webm
from service.audio.arriving import Arriving
from service.audio.containers import ACCEPTED, Container, Sniffed, after_id3, sniff
from service.audio.ffmpeg import decode_stream
from service.audio.mixdown import DEFAULT_LIMITS, PADDING_SECONDS, DecodeLimits, Mixdown
from service.audio.source import Patience
from service.audio.wav import decode_wav
from service.audio.waveform import Waveform
from service.errors import BadAudio, InvalidRequest, NotReady, StorageFull

__all__ = ["DEFAULT_LIMITS", "PADDING_SECONDS", "DecodeLimits", "decode", "decode_arriving"]

NEEDED_BYTES: Final = 2**26  # more than decoding any accepted clip takes at once
LOOKED_AT: Final = (12, 2**12, 2**18)  # bytes of a recording by which it is told, if those before were too few
MAX_TAGS_BYTES: Final = 2**24  # before a recording: they hold pictures
CHECKED_BYTES: Final = 2**20  # of the largest element of a recording that is kept to be judged as a whole
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
    sniffed = sniff(encoded)
    container = sniffed.container
    encoded = encoded[sniffed.start :] if sniffed.start else encoded
    mixdown = Mixdown(limits, _slack(container))
    with _explained(container):
        if container is Container.WAV:
            decode_wav(Arriving(iter([encoded])), mixdown, len(encoded))
            return mixdown.finish()
        if follower := _follower(sniffed):
            follower.feed(encoded)
            _check_whole(container, follower.missing())
        if container is Container.MP4:
            _check_mp4(encoded)
        patience = Patience(len(encoded))
        for link in ogg.split_links(encoded) if container is Container.OGG else [encoded]:
            decode_stream(io.BytesIO(link), container, mixdown, patience)
        return mixdown.finish()


def decode_arriving(
    chunks: Iterator[bytes],
    mixdown: Mixdown,
    spool: Path | None = None,
    *,
    require_room: Callable[[int], None] = lambda size: None,
    only: Container | None = None,
) -> None:
    """As `decode`, of a recording that comes in `chunks`, none of them empty, into the sink of `mixdown`.

    What has to be read back and forth, an mp4, is kept in a file until it is decoded.

    Args:
        spool: directory of that file; the system's own without one.
        require_room: asked before so many bytes are added to it; raises StorageFull.
        only: the container that is accepted; any without it.

    Raises:
        StorageFull: no space is left for it.
    """
    arriving = Arriving(chunks)
    sniffed = _sniff_arriving(arriving)
    container, scale = sniffed.container, max(1, round(mixdown.limits.max_seconds / DEFAULT_LIMITS.max_seconds))
    if only not in (None, container):
        raise BadAudio(f"this is {container.title} where only {only.title} is accepted; send that")
    arriving.skip(sniffed.start)
    mixdown.slack = _slack(container)
    with _explained(container):
        if container is Container.WAV:
            decode_wav(arriving, mixdown)
        elif container is Container.MP4:
            with tempfile.TemporaryFile(dir=spool) as file:
                _decode_spooled(file, _spool(arriving, file, require_room), mixdown)
        elif container is Container.OGG:
            patience = Patience(None)
            for link in ogg.links(arriving, ogg.MAX_PAGES * scale):
                decode_stream(link, container, mixdown, patience)
        else:
            follower = _follower(sniffed, scale, CHECKED_BYTES)
            _decode_followed(Arriving(_followed(arriving.rest(), follower)), container, mixdown, follower)
    for _ in arriving.rest():  # what no reader wanted
        pass
    mixdown.finish()


def _decode_followed(arriving: Arriving, container: Container, mixdown: Mixdown, follower: "Follower | None") -> None:
    try:
        padding = follower.padding if isinstance(follower, frames.Frames) else lambda: range(0)
        decode_stream(arriving, container, mixdown, Patience(None), padding)
    except av.FFmpegError:
        if follower is not None and not arriving.peek(1):
            _check_whole(container, follower.missing())  # that it is cut off says more
        raise
    for _ in arriving.rest():  # what no reader wanted
        pass
    if follower is not None:
        _check_whole(container, follower.missing())


class Follower(Protocol):
    """Follows a file's own structure as its bytes come."""

    def feed(self, chunk: bytes) -> None: ...

    def missing(self) -> int:
        """Bytes that the file, which has ended, lacks; 0 or fewer where it is whole."""


def _follower(sniffed: Sniffed, scale: int = 1, checked: float = math.inf) -> Follower | None:
    match sniffed.container:
        case Container.WEBM:
            return webm.Elements(webm.MAX_ELEMENTS * scale, checked)
        case Container.MP3:
            return frames.Frames("mp3", sniffed.start, sniffed.dump, frames.MAX_FRAMES * scale)
        case Container.ADTS:
            return frames.Frames("aac", sniffed.start, sniffed.dump, frames.MAX_FRAMES * scale)
    return None


def _followed(chunks: Iterator[bytes], follower: Follower | None) -> Iterator[bytes]:
    for chunk in chunks:
        if follower is not None:
            follower.feed(chunk)
        yield chunk


def _slack(container: Container) -> float:
    return 0.0 if container in (Container.FLAC, Container.WAV) else PADDING_SECONDS


def _check_whole(container: Container, missing: int) -> None:
    if missing > 0:
        raise BadAudio(f"the {container.title} file is cut off: {missing} bytes of it are missing; send it whole")


def _check_mp4(encoded: bytes) -> None:
    mp4.check_tables(encoded)
    _check_whole(Container.MP4, mp4.missing_bytes(encoded))


def _sniff_arriving(arriving: Arriving) -> Sniffed:
    """As `sniff`, by no more of the beginning than it takes: a recording may come as slowly as it is spoken."""
    sizes = list(LOOKED_AT)
    for size in sizes:
        head = arriving.peek(size)
        is_whole = len(head) < size
        if not head:
            raise InvalidRequest("the recording is empty; send an audio file: " + ACCEPTED)
        try:
            return sniff(head, is_whole)
        except BadAudio:
            tags = after_id3(head, 0)
            if is_whole or (size == sizes[-1] and not size < tags < MAX_TAGS_BYTES):
                raise
            if size == sizes[-1]:
                sizes.append(tags + LOOKED_AT[-1])
    raise AssertionError("unreachable")


def _spool(arriving: Arriving, file: BinaryIO, require_room: Callable[[int], None]) -> int:
    """Keeps the rest of a recording in a file, and judges what it claims; the bytes that it lacks."""
    try:
        for chunk in arriving.rest():
            require_room(len(chunk))
            file.write(chunk)
        size = file.tell()
        file.flush()
    except OSError as error:
        raise StorageFull(f"no space is left to keep the recording until it is decoded: {error.strerror}") from error
    with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as encoded:
        mp4.check_tables(encoded)
        return mp4.missing_bytes(encoded)


def _decode_spooled(file: BinaryIO, missing: int, mixdown: Mixdown) -> None:
    """Whole or cut off: where its index is in front, what there is of it is heard."""
    patience = Patience(file.tell())
    file.seek(0)
    try:
        decode_stream(file, Container.MP4, mixdown, patience)
    except av.FFmpegError:
        _check_whole(Container.MP4, missing)
        raise
    _check_whole(Container.MP4, missing)


@contextmanager
def _explained(container: Container) -> Iterator[None]:
    """Tells in the service's words what goes wrong inside."""
    try:
        yield
    except av.FFmpegError as error:
        if isinstance(error, MemoryError) and not _has_memory():
            raise _no_memory() from error
        title = container.title
        reason = next(
            (words for kind, words in _REASONS.items() if isinstance(error, kind)), "its contents are invalid"
        )
        raise BadAudio(f"the {title} file cannot be decoded: {reason}; it is damaged, or no {title} file") from error
    except MemoryError as error:
        raise _no_memory() from error


def _has_memory() -> bool:
    """Whether a failed allocation was the file's fault: FFmpeg does not say, but another one does."""
    try:
        bytearray(NEEDED_BYTES)
    except MemoryError:
        return False
    return True


def _no_memory() -> NotReady:
    return NotReady("this server has no memory left to decode the clip; try again later", retry_after=1.0)
