"""Bytes of an untrusted audio file -> `Waveform`, bounded in time, memory and reach. Knows no features or models.

The container is sniffed and opened with that one demuxer, which can open nothing else; no decoder runs before
what it will be given has been checked; and the limits are applied to what comes out, never to the header alone.
Channels are averaged and the rate is converted while decoding, so that no more than a block of the source's
own rate and channels is ever held.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import av
import av.logging
import numpy as np
import soxr
from av.audio.frame import AudioFrame
from av.audio.plane import AudioPlane
from av.audio.stream import AudioStream
from numpy.typing import NDArray

from service.audio import hostile, truncation
from service.audio.containers import ACCEPTED, Container, sniff
from service.audio.source import Source, refuse_reference
from service.audio.waveform import MIN_SAMPLES, SAMPLING_RATE, Waveform
from service.errors import AudioTooLong, BadAudio, ClipTooShort, InvalidRequest

av.logging.set_level(None)
av.logging.set_libav_level(av.logging.PANIC)

BLOCK_SAMPLES = 16_384  # samples gathered before they are resampled, at the source's rate
RESAMPLER_QUALITY = "HQ"  # 20 bits; VHQ's 28 are below the noise of 16-bit audio, at the same speed
PADDING_SECONDS = 0.1  # by which encoders of lossy formats lengthen a clip
LONG_WAV = 2**20  # bytes from which wav is read in larger packets: those cost less a byte, and more before the first
IDLE_PACKETS = 1_000  # packets that may yield nothing
PACKETS_PER_SECOND = 3_000  # of audio: 16 samples at 48 kHz, the smallest block of any codec
BAD_PACKETS = 16  # packets that mp3 and ADTS may lose: tags and cut frames at either end
LARGEST_SAMPLE = 2.0**31  # beyond every integer scale; larger ones overflow float32 when squared and summed

_DEMUXER_OPTIONS = {
    "protocol_whitelist": "",
    "codec_whitelist": "none",  # of the decoders that probing may run
    "probesize": "65536",
    "analyzeduration": "1000000",
    "max_streams": "32",
    "max_probe_packets": "64",
}
_DTYPES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}  # FFmpeg's -> numpy's
_OPTIONS_OF = {
    Container.WAV: {"max_size": "16384", "max_probe_packets": "0"},  # packets; the first is searched for other codecs
    Container.MP4: {"enable_drefs": "0", "use_absolute_path": "0", "ignore_chapters": "1"},
}


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What a clip may be.

    Args:
        max_seconds: longest clip, seconds.
        min_rate, max_rate: sampling rate of the encoded clip, Hz.
        max_channels: channels of the encoded clip.
        max_decoded_bytes: samples of all channels at the source's rate, 4 bytes each.
    """

    max_seconds: float = 300.0
    min_rate: int = 4_000
    max_rate: int = 192_000
    max_channels: int = 8
    max_decoded_bytes: int = 2**29


DEFAULT_LIMITS = DecodeLimits()


def decode(encoded: bytes, limits: DecodeLimits = DEFAULT_LIMITS) -> Waveform:
    """Decode one clip to the mean of its channels at 16 kHz. Thread-safe.

    Raises:
        InvalidRequest: no bytes at all.
        BadAudio: not an accepted file, damaged, cut off, out of bounds, or shorter than 25 ms.
        AudioTooLong: more than `limits.max_seconds`.
    """
    if not encoded:
        raise InvalidRequest("the clip is empty; send an audio file: " + ACCEPTED)
    container, start = sniff(encoded)
    encoded = encoded[start:] if start else encoded
    hostile.check_container(encoded, container)
    truncation.check_container(encoded, container, tags=start)
    try:
        return _decode(encoded, container, limits)
    except (av.FFmpegError, ValueError, ArithmeticError, LookupError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or "invalid contents"
        raise BadAudio(f"the {container.title} file cannot be decoded: it is damaged ({reason})") from error


def _decode(encoded: bytes, container: Container, limits: DecodeLimits) -> Waveform:
    options = _DEMUXER_OPTIONS | {"format_whitelist": container.demuxer} | _OPTIONS_OF.get(container, {})
    if container is Container.WAV and len(encoded) > LONG_WAV:
        options["max_size"] = "131072"
    source = Source(encoded)
    with av.open(
        source,
        mode="r",
        format=container.demuxer,
        container_options=options,
        metadata_errors="replace",
        buffer_size=65_536,
        io_open=refuse_reference,
    ) as opened:
        if not opened.streams.audio:
            raise BadAudio(f"the {container.title} file has no audio stream that can be decoded; send {ACCEPTED}")
        stream = opened.streams.audio[0]
        _check_stream(stream, container, limits)
        collector = _Collector(container, limits)
        for frame in _frames(opened.demux(stream), container, collector):
            collector.add(frame)
            source.progress()
        samples = collector.finish()
    truncation.check_decoded(encoded, container, collector.produced)
    if len(samples) < MIN_SAMPLES:
        raise ClipTooShort(f"the clip has {len(samples)} samples at 16 kHz; at least {MIN_SAMPLES} (25 ms) are needed")
    return Waveform(samples, collector.rate, collector.channels)


def _check_stream(stream: AudioStream, container: Container, limits: DecodeLimits) -> None:
    """Everything that the header says of the stream, before a decoder is opened for it."""
    context = stream.codec_context
    if context is None or context.name not in container.codecs:
        name = "unknown" if context is None else context.name
        raise BadAudio(f"the {container.title} file holds audio of the codec {name}; send {ACCEPTED}")
    if container is not Container.ADTS:  # which has no header but its frames'
        _check_shape(context.rate, context.channels, limits)
    hostile.check_codec(context.name, context.extradata or b"")
    exact = container.lossless or container is Container.MP4
    if exact and stream.duration is not None and stream.time_base is not None:
        seconds = float(stream.duration * stream.time_base)
        if seconds > limits.max_seconds + PADDING_SECONDS:
            raise _too_long(f"{seconds:.1f} s", limits)
    context.thread_count = 1


def _check_shape(rate: int, channels: int, limits: DecodeLimits) -> None:
    if not limits.min_rate <= rate <= limits.max_rate:
        raise BadAudio(f"the sampling rate is {rate} Hz; {limits.min_rate} to {limits.max_rate} Hz are accepted")
    if not 1 <= channels <= limits.max_channels:
        raise BadAudio(f"the clip has {channels} channels; 1 to {limits.max_channels} are accepted")


def _too_long(length: str, limits: DecodeLimits) -> AudioTooLong:
    return AudioTooLong(f"the clip lasts {length}; at most {limits.max_seconds:g} s are accepted")


def _frames(
    packets: "Iterator[av.Packet[AudioStream]]", container: Container, collector: "_Collector"
) -> Iterator[AudioFrame]:
    """Decode packet after packet, with a bound on those that yield nothing or next to nothing."""
    idle = bad = 0
    for count, packet in enumerate(packets, start=1):
        frames: list[AudioFrame] = []
        try:
            frames = packet.decode()
        except av.InvalidDataError:
            bad += 1
            if container not in (Container.MP3, Container.ADTS) or bad > BAD_PACKETS:
                raise
        yield from frames
        idle += not frames
        if idle > IDLE_PACKETS or count > IDLE_PACKETS + PACKETS_PER_SECOND * (1 + collector.seconds):
            raise BadAudio(f"the {container.title} file has {count} packets for {collector.seconds:.3f} s of audio")


class _Collector:
    """Frames of one stream in, 16 kHz mono out: checks every frame, averages channels, resamples by blocks."""

    def __init__(self, container: Container, limits: DecodeLimits) -> None:
        self.rate = 0  # Hz, of the first frame, and so of all
        self.channels = 0
        self.produced = 0  # samples of each channel, at the source's rate
        self._limits = limits
        self._slack = 0.0 if container.lossless else PADDING_SECONDS
        self._pending: list[NDArray[np.float32]] = []
        self._pending_samples = 0
        self._resampler: soxr.ResampleStream | None = None
        self._blocks: list[NDArray[np.float32]] = []

    @property
    def seconds(self) -> float:
        return self.produced / self.rate if self.rate else 0.0

    def add(self, frame: AudioFrame) -> None:
        rate, channels = frame.sample_rate, frame.layout.nb_channels
        if not self.rate:
            _check_shape(rate, channels, self._limits)
            self.rate, self.channels = rate, channels
            if rate != SAMPLING_RATE:
                self._resampler = soxr.ResampleStream(rate, SAMPLING_RATE, 1, "float32", RESAMPLER_QUALITY)
        if (rate, channels) != (self.rate, self.channels):
            raise BadAudio(
                f"the clip changes from {self.rate} Hz with {self.channels} channels to {rate} Hz with {channels} "
                f"after {self.seconds:.2f} s; send it with one rate and channel count"
            )
        self.produced += frame.samples
        if self.seconds > self._limits.max_seconds + self._slack:
            raise _too_long(f"more than {self._limits.max_seconds:g} s", self._limits)
        if self.produced * channels * 4 > self._limits.max_decoded_bytes:
            raise AudioTooLong(
                f"the clip decodes to more than {self._limits.max_decoded_bytes} bytes "
                f"({channels} channels at {rate} Hz); send it with fewer channels or at a lower rate"
            )
        self._pending.append(_mono(frame))
        self._pending_samples += frame.samples
        if self._pending_samples >= BLOCK_SAMPLES:
            self._flush(last=False)

    def _flush(self, last: bool) -> None:
        block = np.concatenate(self._pending) if self._pending else np.empty(0, np.float32)
        self._pending, self._pending_samples = [], 0
        if len(block) and not np.max(np.abs(block)) <= LARGEST_SAMPLE:  # also false for not-a-number
            raise BadAudio("the clip has samples that are not finite or beyond any scale; send samples within [-1, 1]")
        self._blocks.append(block if self._resampler is None else self._resampler.resample_chunk(block, last=last))

    def finish(self) -> NDArray[np.float32]:
        """All samples at 16 kHz, after the last frame."""
        self._flush(last=True)
        return np.concatenate(self._blocks)


def _mono(frame: AudioFrame) -> NDArray[np.float32]:
    """The mean of a frame's channels, integers scaled to [-1, 1)."""
    count, dtype = frame.layout.nb_channels, _DTYPES[frame.format.name.removesuffix("p")]
    # Not frame.to_ndarray(): it looks for planes until it meets an empty pointer, and none lies behind an eighth.
    if frame.format.is_planar:
        channels = [_plane(frame, plane, dtype, frame.samples) for plane in range(count)]
    else:
        packed = _plane(frame, 0, dtype, frame.samples * count)
        channels = [packed[channel::count] for channel in range(count)]
    with np.errstate(all="ignore"):  # what overflows is caught as not finite
        mono: NDArray[np.float32] = channels[0].astype(np.float32)
        for channel in channels[1:]:
            mono += channel
        mono /= np.float32(count)
    if dtype == "u1":
        mono -= np.float32(128)
    if dtype[0] in "iu":
        mono *= np.float32(2.0 ** (1 - 8 * int(dtype[1])))
    return mono


def _plane(frame: AudioFrame, index: int, dtype: str, count: int) -> NDArray[np.float32 | np.integer]:
    return np.frombuffer(AudioPlane(frame, index), dtype, count)  # type: ignore[call-overload, no-any-return]
