"""Kinds of sounds made from formulas: recordings of sounds are few, of these there are as many as one likes.

Which formula it was is a target that needs no human label: slope, pitch, repetition, decay, modulation, rhythm.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.audio.waveform import SAMPLING_RATE
from service.training.augment import coloured_noise

Signal = NDArray[Any]
Random = np.random.Generator


def _time(length: int) -> Signal:
    return np.arange(length) / SAMPLING_RATE


def _pitch(rng: Random, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _tone(frequency: Signal | float, length: int, rng: Random, harmonics: int) -> Signal:
    """Harmonics `[length]` of a pitch that may change, up to 7.6 kHz."""
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(frequency, (length,))) / SAMPLING_RATE
    most, slope = max(1, min(harmonics, int(7600 / np.max(frequency)))), rng.uniform(0.3, 2.0)
    out: Signal = np.sum([k**-slope * np.sin(k * phase + rng.uniform(0, 6.28)) for k in range(1, most + 1)], axis=0)
    return out


def steady_noise(length: int, rng: Random) -> Signal:
    return coloured_noise(length, rng.uniform(-0.5, 2.0), rng)


def narrow_noise(length: int, rng: Random) -> Signal:
    frequency = np.fft.rfftfreq(length, 1 / SAMPLING_RATE)
    centre, width = _pitch(rng, 200, 5000), rng.uniform(0.05, 0.6)
    spectrum = np.fft.rfft(rng.standard_normal(length)) * np.exp(-(((frequency - centre) / (centre * width)) ** 2))
    return np.fft.irfft(spectrum, length)


def waving_noise(length: int, rng: Random) -> Signal:
    """Noise that swells or flutters."""
    wave = 0.5 + 0.5 * np.sin(2 * np.pi * (_pitch(rng, 0.2, 30) * _time(length) + rng.uniform()))
    return steady_noise(length, rng) * (0.05 + wave ** rng.uniform(0.5, 4))


def clicks(length: int, rng: Random, regular: bool = True) -> Signal:
    """Bursts that die away, in a steady rhythm or not."""
    period = int(SAMPLING_RATE / _pitch(rng, 0.8, 12))
    places = np.arange(int(rng.integers(period)), length, period)
    if not regular:
        places = rng.integers(0, length, max(1, len(places)))
    train = np.zeros(length)
    train[places] = rng.uniform(0.2, 1.0, len(places))
    decay = _pitch(rng, 0.001, 0.1)
    ring = np.exp(-_time(length) / decay) * narrow_noise(length, rng)
    out: Signal = np.fft.irfft(np.fft.rfft(train, 2 * length) * np.fft.rfft(ring, 2 * length), 2 * length)[:length]
    return out


def crackle(length: int, rng: Random) -> Signal:
    return clicks(length, rng, regular=False)


def engine(length: int, rng: Random) -> Signal:
    wobble = 1 + 0.03 * np.sin(2 * np.pi * rng.uniform(0.2, 3) * _time(length))
    return _tone(_pitch(rng, 40, 250) * wobble, length, rng, 30) + rng.uniform(0.1, 1.0) * steady_noise(length, rng)


def calls(length: int, rng: Random) -> Signal:
    """A voice's rise and fall, in bouts."""
    place = (_time(length) * rng.uniform(0.6, 6) + rng.uniform()) % 1.0
    pitch = _pitch(rng, 200, 2500) * (1 + rng.uniform(-0.4, 0.6) * np.sin(np.pi * place))
    return _tone(pitch, length, rng, 16) * np.maximum(np.sin(np.pi * place / rng.uniform(0.4, 0.9)), 0)


def music(length: int, rng: Random) -> Signal:
    """Notes of a scale, one or several at once, in a steady rhythm, struck or held."""
    out, beat = np.zeros(length), int(SAMPLING_RATE / rng.uniform(1.5, 8))
    scale = _pitch(rng, 100, 500) * 2 ** (np.cumsum(rng.choice((1, 2, 3), 12, p=(0.3, 0.6, 0.1))) / 12)
    voices, harmonics, decay = int(rng.integers(1, 4)), int(rng.integers(2, 14)), rng.uniform(0.05, 1.0)
    for start in range(int(rng.integers(beat)), length - 1, beat):
        span = min(length - start, beat * int(rng.integers(1, 4)))
        envelope = np.minimum(_time(span) / 0.01, 1.0) * np.exp(-_time(span) / decay)
        for pitch in rng.choice(scale, voices):
            out[start : start + span] += envelope * _tone(float(pitch), span, rng, harmonics)
    return out


SOUNDS: tuple[Callable[[int, Random], Signal], ...] = (
    *(steady_noise, narrow_noise, waving_noise, clicks, crackle, engine, calls, music),
)
