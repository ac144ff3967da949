"""Synthetic clips, encoded into every container that the service reads. Encoding is PyAV's own."""

import io
from fractions import Fraction
from typing import Literal

import av
import numpy as np
from numpy.typing import NDArray

ContainerName = Literal["wav", "flac", "mp3", "ogg", "opus", "m4a", "webm", "aac"]
CONTAINERS: tuple[ContainerName, ...] = ("wav", "flac", "mp3", "ogg", "opus", "m4a", "webm", "aac")
LOSSLESS: tuple[ContainerName, ...] = ("wav", "flac")
_ENCODERS = {  # muxer, encoder
    "wav": ("wav", "pcm_s16le"),
    "flac": ("flac", "flac"),
    "mp3": ("mp3", "libmp3lame"),
    "ogg": ("ogg", "vorbis"),
    "opus": ("ogg", "libopus"),
    "m4a": ("mp4", "aac"),
    "webm": ("webm", "libopus"),
    "aac": ("adts", "aac"),
}
_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}


def tone(
    seconds: float, hz: float = 440.0, rate: int = 16_000, channels: int = 1, level: float = 0.5
) -> NDArray[np.float32]:
    """A sine of amplitude `level`: float32 `[N, C]`, the same in all channels."""
    time = np.arange(round(seconds * rate)) / rate
    return np.repeat((level * np.sin(2 * np.pi * hz * time)).astype(np.float32)[:, None], channels, axis=1)


def noise(
    seconds: float, rate: int = 16_000, channels: int = 1, level: float = 0.1, seed: int = 0
) -> NDArray[np.float32]:
    """White noise with standard deviation `level`: float32 `[N, C]`, its channels independent."""
    generator = np.random.default_rng(seed)
    return (level * generator.standard_normal((round(seconds * rate), channels))).astype(np.float32)


def encode(
    samples: NDArray[np.float32], rate: int = 16_000, container: ContainerName = "wav", codec: str | None = None
) -> bytes:
    """Samples `[N, C]` or `[N]` within [-1, 1] as a file. `codec` overrides the encoder (`pcm_f32le`, ...).

    Opus has only 8, 12, 16, 24 and 48 kHz; this Vorbis encoder is stereo only.
    """
    muxer, encoder = _ENCODERS[container][0], codec or _ENCODERS[container][1]
    samples = samples.reshape(len(samples), -1)
    layout = _LAYOUTS[samples.shape[1]]
    target = io.BytesIO()
    with av.open(target, "w", format=muxer) as output:
        stream = output.add_stream(encoder, rate=rate, layout=layout, options={"strict": "-2"})
        if encoder.startswith(("lib", "aac", "vorbis")):
            stream.bit_rate = 96_000 * samples.shape[1]
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.reshape(1, -1)), "flt", layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        for packet in stream.encode(frame):
            output.mux(packet)
        for packet in stream.encode(None):
            output.mux(packet)
    return target.getvalue()


def rms(samples: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def loudest_hz(samples: NDArray[np.float32], rate: int = 16_000) -> float:
    """Frequency of the strongest bin of the spectrum."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * rate / len(samples))
