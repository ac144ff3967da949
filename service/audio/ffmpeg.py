"""Decode one stream of a checked container with FFmpeg, packet by packet, into a `Mixdown`.

The container is opened with its one demuxer, which can open nothing else; no decoder runs before what it will be given
has been checked; and the limits are applied to what comes out, never to the header alone.
"""

from collections.abc import Callable
from typing import Any

import av
import av.logging
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.plane import AudioPlane
from av.audio.stream import AudioStream
from av.codec.context import Flags2
from av.stream import Disposition
from numpy.typing import NDArray

from service.audio.containers import ACCEPTED, Container
from service.audio.flac import FlacSum
from service.audio.mixdown import PADDING_SECONDS, DecodeLimits, Mixdown, mean_of_channels
from service.audio.ogg import check_books
from service.audio.source import Patience, Readable, Source, refuse_reference
from service.errors import BadAudio

av.logging.set_level(None)
av.logging.set_libav_level(av.logging.PANIC)

BLOCK_SAMPLES = 16_384  # gathered before they are worked on, at the source's rate
IDLE_PACKETS = 1_000  # packets that may yield nothing
PACKETS_PER_SECOND = 3_000  # of audio: 16 samples at 48 kHz, the smallest block of any codec
BAD_PACKETS = 16  # packets that mp3 and ADTS may lose: tags and cut frames at either end
OPUS_RATE = 48_000  # Hz, of everything that Opus counts

_DEMUXER_OPTIONS = {
    "protocol_whitelist": "",
    "codec_whitelist": "none",  # of the decoders that probing may run
    "probesize": "65536",
    "analyzeduration": "1000000",
    "max_streams": "32",
    "max_probe_packets": "64",
}
_OPTIONS_OF = {Container.MP4: {"enable_drefs": "0", "use_absolute_path": "0", "ignore_chapters": "1"}}
_DTYPES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}  # FFmpeg's -> numpy's


def decode_stream(
    file: Readable,
    container: Container,
    mixdown: Mixdown,
    patience: Patience,
    padding: Callable[[], range] = lambda: range(0),
) -> None:
    """The default audio stream of a file whose codec is accepted, or the first such, as a part of `mixdown`.

    Args:
        padding: samples that are not to be heard, from the middle of a frame to its end; asked for once some came.

    Raises:
        BadAudio: no such stream, damaged, or out of bounds.
        AudioTooLong: more than the limits allow.
        av.FFmpegError: what FFmpeg says of a damaged file.
    """
    options = _DEMUXER_OPTIONS | {"format_whitelist": container.value.demuxer} | _OPTIONS_OF.get(container, {})
    with av.open(
        Source(file, patience),
        mode="r",
        format=container.value.demuxer,
        container_options=options,
        metadata_errors="replace",
        buffer_size=65_536,
        io_open=refuse_reference,
    ) as opened:
        stream = _choose(opened.streams.audio, container)
        _check_stream(stream, container, mixdown.limits)
        block = _Block(stream, container, mixdown, patience, padding)
        idle = bad = 0
        for count, packet in enumerate(opened.demux(stream), start=1):
            frames: list[AudioFrame] = []
            try:
                frames = packet.decode()
            except av.InvalidDataError:
                bad += 1
                if container not in (Container.MP3, Container.ADTS) or bad > BAD_PACKETS:
                    raise
            for frame in frames:
                block.add(frame, packet)
            idle += not frames
            seconds = 1 + block.samples / max(mixdown.rate, 1)
            if idle > IDLE_PACKETS or count > IDLE_PACKETS + PACKETS_PER_SECOND * seconds:
                raise BadAudio(f"the {container.title} file has {count} packets for {mixdown.seconds:.3f} s of audio")
        block.end()
    mixdown.end()


def _choose(streams: tuple[AudioStream, ...], container: Container) -> AudioStream:
    if not streams:
        raise BadAudio(f"the {container.title} file has no audio stream that can be decoded; send {ACCEPTED}")
    names = [stream.codec_context.name if stream.codec_context else "unknown" for stream in streams]
    accepted = [stream for stream, name in zip(streams, names, strict=True) if name in container.value.codecs]
    if not accepted:
        raise BadAudio(f"the {container.title} file holds audio of the codec {', '.join(names)}; send {ACCEPTED}")
    return next((stream for stream in accepted if stream.disposition & Disposition.default), accepted[0])


def _check_stream(stream: AudioStream, container: Container, limits: DecodeLimits) -> None:
    """Everything that the header says of the stream, before a decoder is opened for it."""
    context = stream.codec_context
    if container is not Container.ADTS and (context.channels or context.name != "flac"):
        limits.check_shape(context.rate, context.channels)  # the others' headers are in their frames
    if context.name == "vorbis":
        check_books(context.extradata or b"")
    exact = container in (Container.FLAC, Container.MP4)
    if exact and stream.duration is not None and stream.time_base is not None:
        seconds = float(stream.duration * stream.time_base)
        if seconds > limits.max_seconds + PADDING_SECONDS:
            raise limits.too_long(f"{seconds:.1f} s")
    context.thread_count = 1


class _OpusEnds:
    """What of a stream of Opus is to be heard, by its own header (RFC 7845, section 5.1).

    Containers state its beginning too, but their writers have scaled it by the rate of what was encoded.
    """

    def __init__(self, stream: AudioStream, container: Container) -> None:
        context = stream.codec_context
        context.flags2 = int(Flags2.skip_manual)
        head = context.extradata or b""
        self._skip = int.from_bytes(head[10:12], "little") if head[:8] == b"OpusHead" else 0
        self._left: int | None = None  # samples to be heard, where an mp4 says how many
        if container is Container.MP4 and stream.duration and stream.time_base:
            self._left = round(stream.duration * stream.time_base * OPUS_RATE)

    def cut(self, samples: int, packet: "av.Packet[AudioStream]") -> slice:
        """Of a frame of so many samples, whose packet may say to discard some at its end."""
        discard = 0
        if packet.has_sidedata("skip_samples"):
            discard = int.from_bytes(bytes(packet.get_sidedata("skip_samples"))[4:8], "little")
        start = min(self._skip, samples)
        self._skip -= start
        end = max(start, samples - discard)
        if self._left is not None:
            end = min(end, start + self._left)
            self._left -= end - start
        return slice(start, end)


class _Block:
    """Frames of one stream, gathered before they are worked on: each costs less among others.

    Attributes:
        samples: of all frames so far, heard or not.
    """

    def __init__(
        self,
        stream: AudioStream,
        container: Container,
        mixdown: Mixdown,
        patience: Patience,
        padding: Callable[[], range],
    ) -> None:
        context = stream.codec_context
        self.samples = 0
        self._mixdown = mixdown
        self._patience = patience
        self._ends = _OpusEnds(stream, container) if "opus" in context.name else None
        self._padding = padding
        self._checksum: FlacSum | None = None
        if context.name == "flac":
            context.options = {"err_detect": "crccheck+explode"}
            self._checksum = FlacSum(context.extradata or b"", whole=container is Container.FLAC)
        self._shape = (0, 0)  # rate and channels of all
        self._dtype = ""  # of those that are gathered
        self._channels: list[list[NDArray[Any]]] = []  # of each frame
        self._places: list[int | None] = []  # of each frame in the stream, where it says
        self._gathered = 0  # samples

    def add(self, frame: AudioFrame, packet: "av.Packet[AudioStream]") -> None:
        """Take a frame that came of `packet`, or what of it is heard."""
        shape = frame.sample_rate, frame.layout.nb_channels
        if shape != self._shape:
            self._begin(*shape)
        count, dtype = shape[1], _DTYPES[frame.format.name.removesuffix("p")]
        if dtype != self._dtype:
            self._flush()
            self._dtype = dtype
        # Not frame.to_ndarray(): it looks for planes until it meets an empty pointer, and none lies behind an eighth.
        # Views keep their planes and those their frame.
        if frame.format.is_planar:
            planes = [AudioPlane(frame, index) for index in range(count)]
            channels: list[NDArray[Any]] = [
                np.frombuffer(plane, dtype, frame.samples)  # type: ignore[call-overload]
                for plane in planes
            ]
        else:
            packed = np.frombuffer(AudioPlane(frame, 0), dtype, frame.samples * count)  # type: ignore[call-overload]
            channels = [packed[channel::count] for channel in range(count)]
        end = self.samples + frame.samples
        if self._ends:
            heard = self._ends.cut(frame.samples, packet)
            channels = [channel[heard] for channel in channels]
        padding = self._padding()
        if padding and padding.start < end and self.samples < padding.stop:
            channels = [channel[: max(0, padding.start - self.samples)] for channel in channels]
        self._channels.append(channels)
        self._places.append(frame.pts)
        self.samples = end
        self._gathered += frame.samples
        if self._gathered >= BLOCK_SAMPLES:
            self._flush()

    def end(self) -> None:
        """The stream is complete. Raises BadAudio where it says that it should not be."""
        self._flush()
        if self._checksum:
            self._checksum.check()

    def _begin(self, rate: int, channels: int) -> None:
        self._flush()
        old_rate, old_channels = self._shape
        if old_rate:
            raise BadAudio(
                f"the clip changes from {old_rate} Hz with {old_channels} channels to {rate} Hz with {channels} "
                f"after {self._mixdown.seconds:.2f} s; send it with one rate and channel count"
            )
        self._mixdown.begin(rate, channels)
        self._shape = rate, channels

    def _flush(self) -> None:
        if not self._channels:
            return
        if self._checksum:
            self._checksum.follow(self._places, [len(channels[0]) for channels in self._channels])
        together = [
            parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in zip(*self._channels, strict=True)
        ]
        self._channels, self._places, self._gathered = [], [], 0
        if self._checksum:
            self._checksum.add(together)
        self._mixdown.add(mean_of_channels(together))
        self._patience.progress()
