"""Cuts windows out of clips and distorts them: speed, place, level, equaliser, band limit, noise.

Everything random comes from the generator that is passed in, so a step can be made again exactly. It
knows neither labels nor the model.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from service.training.pretraining.sounds import coloured_noise

SAMPLE_RATE = 16_000
EQUALISER_KNOTS = 7  # from 60 Hz to 8 kHz, evenly on a logarithmic axis

Signal = npt.NDArray[np.float32]
Random = np.random.Generator


@dataclass(frozen=True, slots=True)
class Distortion:
    """How strongly a task's windows are distorted. Chances are per window, levels in decibels."""

    speed: float = 0.1  # largest relative change of rate
    gain: float = 10.0  # largest change of level
    noise_chance: float = 0.5
    noise_low: float = 5.0  # signal-to-noise ratio
    noise_high: float = 30.0
    equaliser_chance: float = 0.5
    equaliser: float = 6.0  # largest boost or cut at a knot
    tilt: float = 0.3  # largest |a| of y[t] = x[t] + a x[t-1]
    band_limit_chance: float = 0.1


def cut(samples: npt.NDArray[np.int16], length: int, speed: float, rng: Random) -> Signal:
    """A random window `[length]` of a clip played at another speed.

    A shorter clip is put at a random place, surrounded by silence or (half of the time) by repetitions of
    itself, which are the two ways a served clip is filled to its window.
    """
    wanted = int(length * speed)
    if len(samples) > wanted:
        start = int(rng.integers(0, len(samples) - wanted))
        piece = samples[start : start + wanted]
    else:
        piece = samples
    signal = piece.astype(np.float32) / 32768
    count = max(1, int(len(signal) / speed))
    played: Signal = np.interp(np.arange(count) * speed, np.arange(len(signal)), signal).astype(np.float32)[:length]
    if len(played) == length:
        return played
    if rng.random() < 0.5:
        return np.roll(np.resize(played, length), int(rng.integers(0, length)) if rng.random() < 0.5 else 0)
    out = np.zeros(length, np.float32)
    start = int(rng.integers(0, length - len(played) + 1)) if rng.random() < 0.7 else 0
    out[start : start + len(played)] = played
    return out


def noise_bank(count: int, length: int, rng: Random) -> list[npt.NDArray[np.int16]]:
    """Coloured noises, white to brown, as int16 at an RMS of 0.1."""
    return [
        (coloured_noise(length, rng.uniform(-0.3, 2.0), rng) * 3277).clip(-32767, 32767).astype(np.int16)
        for _ in range(count)
    ]


def _responses(rows: int, bins: int, distortion: Distortion, rng: Random) -> npt.NDArray[np.float32]:
    """Magnitude responses `[rows, bins]`: a smooth random equaliser and, now and then, a telephone's low-pass."""
    frequency = np.linspace(0, SAMPLE_RATE / 2, bins)
    axis = np.log(np.maximum(frequency, 60.0))
    knots = np.linspace(np.log(60.0), np.log(SAMPLE_RATE / 2), EQUALISER_KNOTS)
    out = np.ones((rows, bins), np.float32)
    for row in range(rows):
        if rng.random() < distortion.equaliser_chance:
            level = np.interp(axis, knots, rng.uniform(-distortion.equaliser, distortion.equaliser, EQUALISER_KNOTS))
            out[row] *= 10 ** (level / 20)
        if rng.random() < distortion.band_limit_chance:
            out[row] /= 1 + (frequency / rng.uniform(3200, 4200)) ** 24
    return out


def distort(windows: Signal, noises: list[npt.NDArray[np.int16]], distortion: Distortion, rng: Random) -> Tensor:
    """`[B, N]` -> `[B, N]`: noise at a random ratio, equaliser, tilt, level."""
    rows, length = windows.shape
    noisy = windows.copy()
    for row in np.flatnonzero(rng.random(rows) < distortion.noise_chance):
        noise = noises[int(rng.integers(0, len(noises)))]
        piece = np.resize(np.roll(noise, -int(rng.integers(0, len(noise)))), length).astype(np.float32)
        ratio = 10 ** (rng.uniform(distortion.noise_low, distortion.noise_high) / 10)
        power, noise_power = float(np.mean(windows[row] ** 2)), float(np.mean(piece**2))
        noisy[row] += piece * np.sqrt(power / (noise_power + 1e-9) / ratio)
    signal = torch.from_numpy(noisy)
    spectrum = torch.fft.rfft(signal)
    signal = torch.fft.irfft(spectrum * torch.from_numpy(_responses(rows, spectrum.shape[1], distortion, rng)), length)
    tilt = torch.from_numpy(rng.uniform(-distortion.tilt, distortion.tilt, (rows, 1)).astype(np.float32))
    signal[:, 1:] = signal[:, 1:] + tilt * signal[:, :-1]
    level = 10 ** (rng.uniform(-distortion.gain, distortion.gain, (rows, 1)) / 20)
    levelled: Tensor = signal * torch.from_numpy(level.astype(np.float32))
    return levelled.clamp(-1, 1)


def mix_up(windows: Signal, chance: float, rng: Random) -> tuple[Signal, npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """Blend some windows with another of the batch: blended `[B, N]`, partners `[B]`, shares of the first `[B]`.

    Signals are brought to a like level first, so that the share says what is heard (between-class learning).
    """
    rows = len(windows)
    partners = rng.permutation(rows)
    share = np.where(rng.random(rows) < chance, rng.uniform(0.5, 1.0, rows), 1.0).astype(np.float32)
    level = np.sqrt(np.mean(windows**2, axis=1)) + 1e-4
    partner = windows[partners] * (level / level[partners])[:, None]
    norm = np.sqrt(share**2 + (1 - share) ** 2)
    blended = (share[:, None] * windows + (1 - share)[:, None] * partner) / norm[:, None]
    return blended.astype(np.float32), partners, share
