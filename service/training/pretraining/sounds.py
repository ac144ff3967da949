"""Audio made from formulas: coloured noise for augmentation, and classes of sounds to tell apart.

The corpora hold 240 recordings of sound events; what is synthesised here adds endless examples of the
things that set such sounds apart (spectral slope, pitch, repetition rate, decay, modulation). It knows
no files and no model.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

SAMPLE_RATE = 16_000

Signal = npt.NDArray[np.float32]
Random = np.random.Generator


def coloured_noise(length: int, exponent: float, rng: Random) -> Signal:
    """Noise `[length]` of unit RMS whose power falls as `frequency ** -exponent` (0 white, 1 pink, 2 brown)."""
    spectrum = rng.standard_normal(length // 2 + 1) + 1j * rng.standard_normal(length // 2 + 1)
    frequency = np.maximum(np.arange(length // 2 + 1), length * 30 / SAMPLE_RATE)
    signal = np.fft.irfft(spectrum * frequency ** (-exponent / 2), length)
    return _unit(signal)


def _unit(signal: npt.NDArray[np.floating]) -> Signal:
    """Scaled to an RMS of one."""
    scaled: Signal = (signal / (np.sqrt(np.mean(signal**2)) + 1e-9)).astype(np.float32)
    return scaled


def _time(length: int) -> npt.NDArray[np.float64]:
    return np.arange(length) / SAMPLE_RATE


def _pitch(rng: Random, low: float = 80, high: float = 3000) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _band_noise(length: int, rng: Random) -> Signal:
    spectrum = np.fft.rfft(rng.standard_normal(length))
    frequency = np.fft.rfftfreq(length, 1 / SAMPLE_RATE)
    centre, width = _pitch(rng, 200, 5000), rng.uniform(0.05, 0.6)
    return _unit(np.fft.irfft(spectrum * np.exp(-(((frequency - centre) / (centre * width)) ** 2)), length))


def white_to_brown(length: int, rng: Random) -> Signal:
    return coloured_noise(length, rng.uniform(-0.5, 2.0), rng)


def narrow_noise(length: int, rng: Random) -> Signal:
    return _band_noise(length, rng)


def swelling_noise(length: int, rng: Random) -> Signal:
    rate = rng.uniform(0.1, 1.0)
    swell = 0.55 + 0.45 * np.sin(2 * np.pi * (rate * _time(length) + rng.uniform()))
    return _unit(coloured_noise(length, rng.uniform(0.2, 1.5), rng) * swell**2)


def fluttering_noise(length: int, rng: Random) -> Signal:
    rate = rng.uniform(6, 30)
    flutter = np.maximum(np.sin(2 * np.pi * (rate * _time(length) + rng.uniform())), 0) ** rng.uniform(0.5, 4)
    return _unit(coloured_noise(length, rng.uniform(0.2, 2), rng) * (0.05 + flutter))


def _impulses(positions: npt.NDArray[np.intp], length: int, decay: float, rng: Random) -> Signal:
    """Short decaying bursts at the given samples, each of its own level."""
    train = np.zeros(length)
    positions = positions[positions < length]
    train[positions] = rng.uniform(0.2, 1.0, len(positions))
    span = min(length, int(decay * 5 * SAMPLE_RATE) + 16)
    ring = np.exp(-_time(span) / decay) * _band_noise(span, rng)
    return _unit(np.fft.irfft(np.fft.rfft(train, 2 * length) * np.fft.rfft(ring, 2 * length), 2 * length)[:length])


def regular_clicks(length: int, rng: Random) -> Signal:
    period = SAMPLE_RATE / rng.uniform(0.8, 6)
    positions = (np.arange(0, length, period) + rng.uniform(0, period)).astype(np.intp)
    return _impulses(positions, length, rng.uniform(0.002, 0.02), rng)


def crackle(length: int, rng: Random) -> Signal:
    count = max(1, int(rng.uniform(5, 60) * length / SAMPLE_RATE))
    return _impulses(rng.integers(0, length, count), length, rng.uniform(0.0005, 0.004), rng)


def single_burst(length: int, rng: Random) -> Signal:
    return _impulses(rng.integers(0, max(1, length // 2), 1), length, rng.uniform(0.03, 0.2), rng)


def _tone(frequency: npt.NDArray[np.float64] | float, length: int, rng: Random, harmonics: int) -> Signal:
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(frequency, (length,))) / SAMPLE_RATE
    top = int(np.max(frequency))
    slope = rng.uniform(0.3, 2.0)
    parts = [k**-slope * np.sin(k * phase + rng.uniform(0, 6.28)) for k in range(1, harmonics + 1) if k * top < 7600]
    return _unit(np.sum(parts, axis=0)) if parts else _unit(np.sin(phase))


def steady_tone(length: int, rng: Random) -> Signal:
    return _tone(_pitch(rng), length, rng, 1)


def engine(length: int, rng: Random) -> Signal:
    wobble = 1 + 0.03 * np.sin(2 * np.pi * rng.uniform(0.2, 3) * _time(length))
    buzz = _tone(_pitch(rng, 40, 250) * wobble, length, rng, 30)
    return _unit(buzz + rng.uniform(0.1, 1.0) * coloured_noise(length, 1.0, rng))


def sweep(length: int, rng: Random) -> Signal:
    ends = np.log([_pitch(rng, 150, 4000), _pitch(rng, 150, 4000)])
    cycles = rng.uniform(0.5, 3)
    position = 0.5 - 0.5 * np.cos(2 * np.pi * cycles * (np.arange(length) / length + rng.uniform()))
    return _tone(np.exp(ends[0] + (ends[1] - ends[0]) * position), length, rng, int(rng.integers(1, 8)))


def cry(length: int, rng: Random) -> Signal:
    """Harmonic calls with a rising and falling pitch, in bouts."""
    rate = rng.uniform(0.6, 2.5)
    position = (_time(length) * rate + rng.uniform()) % 1.0
    envelope = np.maximum(np.sin(np.pi * position / rng.uniform(0.4, 0.9)), 0) * (position < 0.9)
    pitch = _pitch(rng, 250, 700) * (1 + rng.uniform(0.1, 0.5) * np.sin(np.pi * position))
    return _unit(_tone(pitch, length, rng, 16) * envelope + 1e-3 * rng.standard_normal(length))


def vibrato(length: int, rng: Random) -> Signal:
    depth = rng.uniform(0.02, 0.15) * np.sin(2 * np.pi * rng.uniform(4, 12) * _time(length))
    return _tone(_pitch(rng, 150, 2000) * (1 + depth), length, rng, int(rng.integers(1, 10)))


def chord_decay(length: int, rng: Random) -> Signal:
    start = int(rng.integers(0, max(1, length // 3)))
    time = _time(length - start)
    notes = [
        np.exp(-time / rng.uniform(0.1, 0.8)) * _tone(_pitch(rng, 150, 2500), length - start, rng, 3) for _ in range(3)
    ]
    return _unit(np.concatenate([np.zeros(start), np.sum(notes, axis=0)]))


SOUNDS: tuple[Callable[[int, Random], Signal], ...] = (
    white_to_brown,
    narrow_noise,
    swelling_noise,
    fluttering_noise,
    regular_clicks,
    crackle,
    single_burst,
    steady_tone,
    engine,
    sweep,
    cry,
    vibrato,
    chord_decay,
)


def synthetic_bank(per_class: int, length: int, rng: Random) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int64]]:
    """Sounds `[classes * per_class, length]` at a peak of 0.5, and their class numbers."""
    rows = []
    for make in SOUNDS:
        for _ in range(per_class):
            signal = make(length, rng)
            rows.append((signal / (np.abs(signal).max() + 1e-9) * 16_383).astype(np.int16))
    return np.stack(rows), np.repeat(np.arange(len(SOUNDS)), per_class)
