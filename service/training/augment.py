"""Changes clips so that an adapter hears what it will meet: places, speeds, levels, colours, noises, mixtures.

Everything random comes from the generator that is passed in.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchaudio.functional import resample

from service.audio.decode import decode
from service.audio.waveform import MIN_SAMPLES, SAMPLING_RATE
from service.training.datasets.dataset import BadDataset, Span, audio_files
from service.training.recipe import Augmentation

Samples = NDArray[np.float32]
Random = np.random.Generator

MIXUP_BETA = 10.0  # Beta(10, 10): close to one half
ROLL_FRAMES = (-10, 10)  # of `input_noise`, upper end excluded
MIN_POWER = 1e-10
LOUD_SAMPLES = 800  # 50 ms, in which a clip is loud or not
LOUD = 0.1  # of the loudest, in amplitude
BACKGROUND_DB = (-75.0, -25.0)  # level of noise alone, relative to full scale
SILENCE_CHANCE = 0.1
COLOURED_CHANCE = 0.3  # of synthesised noise where there are noise files too
COLOURS = (-0.5, 2.0)  # exponent of 1 / f ** exponent: blue to brown
CODECS = (("libopus", "ogg", (8_000, 24_000)), ("libmp3lame", "mp3", (16_000, 40_000)))  # and bits a second
ROOM_SECONDS = (0.1, 0.7)  # until an echo has fallen by 60 dB
ROOM_LEVEL = (0.01, 0.08)  # of the echo at first, relative to the direct sound
Kind = Literal["noise", "music", "babble", "room"]

MIXES: tuple[tuple[Kind, ...], ...] = ((), ("room",), ("babble",), ("music",), ("noise",), ("babble", "music"))
SNR = {"noise": (0.0, 15.0), "music": (5.0, 25.0), "babble": (13.0, 20.0)}  # dB
VOICES = (3, 8)  # of a babble, which has one ratio to the clip
FOLDERS: dict[Kind, str] = {"noise": "noise", "music": "music", "babble": "speech"}  # of MUSAN
_Noise = TypeVar("_Noise")


@dataclass(frozen=True, slots=True)
class Augmenter(Generic[_Noise]):
    """A recipe's waveform augmentation."""

    recipe: Augmentation
    window: int  # samples of the input window
    noises: Sequence[_Noise]  # noise recordings, whatever `read` turns into samples
    read: Callable[[_Noise], Samples]

    def __call__(self, samples: Samples, rng: Random) -> Samples:
        """A changed copy of a clip `[N]`, no longer than the window and never shorter than one frame."""
        recipe = self.recipe
        speed = float(rng.uniform(1 - recipe.speed, 1 + recipe.speed)) if recipe.speed else 1.0
        if recipe.piece:
            shortest = min(self.window, int(recipe.piece * SAMPLING_RATE))
            samples = around_loud(samples, int(rng.integers(shortest, self.window + 1)), rng)
        piece = crop(samples, int(self.window * speed) + 1, rng)
        if speed != 1.0:
            piece = resampled(piece, speed)
        piece = piece[: self.window]
        if recipe.shift and len(piece) < self.window:
            piece = shifted(piece, int(rng.uniform(-recipe.shift, recipe.shift) * SAMPLING_RATE), self.window)
        if recipe.room and rng.random() < recipe.room:
            piece = reverberated(piece, room(rng))
        if recipe.noise and rng.random() < recipe.noise:
            piece = with_noise(piece, self._noise(len(piece), rng), float(rng.uniform(*recipe.noise_snr)))
        if recipe.codec and rng.random() < recipe.codec:
            piece = coded(piece, rng)
        if recipe.telephone and rng.random() < recipe.telephone:
            piece = narrowed(piece)
        if recipe.tilt:
            piece = tilted(piece, float(rng.uniform(-recipe.tilt, recipe.tilt)))
        if recipe.gain:
            piece = piece * np.float32(10 ** (rng.uniform(-recipe.gain, recipe.gain) / 20))
        return np.asarray(piece, dtype=np.float32)

    def background(self, rng: Random) -> Samples:
        """Noise alone, of the recipe's files or coloured, or silence: as long as the window."""
        if rng.random() < SILENCE_CHANCE:
            return np.zeros(self.window, np.float32)
        noise = self._noise(self.window, rng)
        level = 10 ** (float(rng.uniform(*BACKGROUND_DB)) / 20)
        return np.asarray(noise * (level / max(float(np.sqrt(np.mean(noise**2))), 1e-9)), dtype=np.float32)

    def _noise(self, length: int, rng: Random) -> Samples:
        if not self.noises or rng.random() < COLOURED_CHANCE:
            return coloured_noise(length, float(rng.uniform(*COLOURS)), rng)
        noise = self.read(self.noises[int(rng.integers(len(self.noises)))])
        return stretched(noise, length, rng)


def stretched(noise: Samples, length: int, rng: Random) -> Samples:
    """A random stretch of exactly `length` samples, of a shorter recording repeated."""
    return crop(np.resize(noise, max(length, len(noise))), length, rng)


def crop(samples: Samples, length: int, rng: Random) -> Samples:
    """A random stretch of at most `length` samples."""
    spare = len(samples) - length
    start = int(rng.integers(spare + 1)) if spare > 0 else 0
    return samples[start : start + length]


def around_loud(samples: Samples, length: int, rng: Random) -> Samples:
    """A random stretch of at most `length` samples that holds a moment in which the clip is loud."""
    frames = len(samples) // LOUD_SAMPLES
    if frames == 0 or len(samples) <= length:
        return samples
    levels = np.sqrt(np.mean(samples[: frames * LOUD_SAMPLES].reshape(frames, -1) ** 2, axis=1))
    moment = int(rng.choice(np.flatnonzero(levels >= LOUD * levels.max()))) * LOUD_SAMPLES
    low, high = max(0, moment + LOUD_SAMPLES - length), min(moment, len(samples) - length)
    start = int(rng.integers(min(low, high), max(low, high) + 1))
    return samples[start : start + length]


def resampled(samples: Samples, speed: float) -> Samples:
    """The clip played faster (`speed` above 1) or slower, by linear interpolation; pitch moves with it."""
    count = max(MIN_SAMPLES, int(len(samples) / speed))
    positions = np.minimum(np.arange(count) * speed, len(samples) - 1)
    played: Samples = np.interp(positions, np.arange(len(samples)), samples).astype(np.float32)
    return played


def shifted(samples: Samples, by: int, longest: int) -> Samples:
    """The clip later by so many samples (silence before it) or earlier (its beginning cut off)."""
    if by >= 0:
        return np.concatenate((np.zeros(by, np.float32), samples))[:longest]
    return samples[min(-by, max(0, len(samples) - MIN_SAMPLES)) :]


def with_noise(samples: Samples, noise: Samples, snr_db: float) -> Samples:
    """Signal plus noise `[N]` at a ratio of mean powers, dB. Silence stays as it is."""
    power, noise_power = float(np.mean(samples**2)), float(np.mean(noise**2))
    if power < MIN_POWER or noise_power < MIN_POWER:
        return samples
    return samples + noise * np.float32(np.sqrt(power / noise_power / 10 ** (snr_db / 10)))


def tilted(samples: Samples, a: float) -> Samples:
    """First-order equaliser `y[t] = x[t] + a x[t-1]`."""
    out = samples.copy()
    out[1:] += np.float32(a) * samples[:-1]
    return out


def narrowed(samples: Samples) -> Samples:
    """The clip without what is above 4 kHz, as a telephone leaves it."""
    half = resample(torch.from_numpy(samples.copy()), SAMPLING_RATE, SAMPLING_RATE // 2)
    narrow: Samples = resample(half, SAMPLING_RATE // 2, SAMPLING_RATE).numpy()
    return narrow[: len(samples)]


def reverberated(samples: Samples, response: Samples) -> Samples:
    """The clip in a room, `[N]`: convolved with the room's impulse response, scaled to an energy of 1."""
    energy = float(np.sqrt(np.sum(np.square(response, dtype=np.float64))))
    if energy == 0.0:
        return samples
    length = len(samples) + len(response) - 1
    size = 1 << (length - 1).bit_length()
    spectrum = np.fft.rfft(samples, size) * np.fft.rfft(response / energy, size)
    return np.fft.irfft(spectrum, size)[: len(samples)].astype(np.float32)


def as_int16(samples: Samples) -> NDArray[np.int16]:
    """16-bit samples; what a filter took beyond the range is cut off at it."""
    return (samples.clip(-1, 1) * 32767).round().astype(np.int16)


def room(rng: Random) -> Samples:
    """An impulse response `[N]`: the direct sound, and noise that dies away."""
    seconds = float(rng.uniform(*ROOM_SECONDS))
    time = np.arange(int(seconds * SAMPLING_RATE)) / SAMPLING_RATE
    response = rng.standard_normal(len(time)) * 10 ** (-3 * time / seconds) * rng.uniform(*ROOM_LEVEL)
    response[0] = 1.0
    return response.astype(np.float32)


def coded(samples: Samples, rng: Random) -> Samples:
    """The clip `[N]` through a lossy codec at a low rate and back."""
    codec, container, rates = CODECS[int(rng.integers(len(CODECS)))]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream: Any = file.add_stream(codec, rate=SAMPLING_RATE, layout="mono", bit_rate=int(rng.integers(*rates)))
        frame = av.AudioFrame.from_ndarray(as_int16(samples)[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLING_RATE
        file.mux([*stream.encode(frame), *stream.encode(None)])
    out = np.zeros_like(samples)
    back = decode(buffer.getvalue()).samples[: len(samples)]
    out[: len(back)] = back
    return out


def coloured_noise(length: int, exponent: float, rng: Random) -> Samples:
    """Gaussian noise whose power falls with frequency as `1 / f ** exponent`."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    frequency = np.maximum(np.arange(len(spectrum)), 1.0)
    noise: Samples = np.fft.irfft(spectrum * frequency ** (-exponent / 2), length).astype(np.float32)
    return noise


def fixed_noise(samples: Samples, noise: Samples, offset: int, snr_db: float, eq_a: float) -> Samples:
    """A data set's fixed noisy condition: roll, tile, add at a ratio, equalise; no randomness."""
    return tilted(with_noise(samples, np.resize(np.roll(noise, offset), len(samples)), snr_db), eq_a)


def mixed_pair(piece: Samples, other: Samples, rng: Random) -> tuple[Samples, float]:
    """The paper's mixup of two waveforms: weights from Beta(10, 10), means removed.

    Returns:
        the mixture, as long as the longer of the two, and the share of `piece`.
    """
    share = float(rng.beta(MIXUP_BETA, MIXUP_BETA))
    blend = np.zeros(max(len(piece), len(other)), np.float32)
    blend[: len(piece)] += np.float32(share) * (piece - piece.mean())
    blend[: len(other)] += np.float32(1 - share) * (other - other.mean())
    return blend - blend.mean(), share


def masked(frames: Tensor, time_mask: int, frequency_mask: int, value: float, rng: Random) -> Tensor:
    """SpecAugment: one stretch of frames and one of bins of `[frames, bins]` set to `value`.

    Masks are up to the given sizes. `value` is what zero before normalisation becomes after it.
    """
    out = frames.clone()
    for dimension, size in ((0, time_mask), (1, frequency_mask)):
        width = int(rng.integers(0, min(size, out.shape[dimension]) + 1))
        start = int(rng.integers(0, out.shape[dimension] - width + 1))
        out.narrow(dimension, start, width).fill_(value)
    return out


def jittered(frames: Tensor, rng: Random) -> Tensor:
    """Noise `U(0, 1) U(0, 1) / 10` added to normalised frames `[frames, bins]`, which are then rolled."""
    noise = torch.from_numpy(rng.random(tuple(frames.shape), dtype=np.float32))
    return torch.roll(frames + noise * float(rng.random()) / 10, int(rng.integers(*ROLL_FRAMES)), dims=0)


@dataclass(frozen=True, slots=True)
class Corruption:
    """Noise, music, babble and rooms, for verification: each clip gets one of MIXES, evenly, as in the paper's runs.

    Args:
        files: recordings of each kind that there is: noises, music, voices, impulse responses.
    """

    files: dict[Kind, tuple[Span, ...]]

    def __call__(self, samples: Samples, rng: Random, read: Callable[[Span], Samples]) -> Samples:
        """A corrupted copy of a clip `[N]`, of its length; everything random is drawn from `rng`."""
        mixes = [mix for mix in MIXES if all(kind in self.files for kind in mix)]

        def draw(kind: Kind) -> Samples:
            files = self.files[kind]
            return read(files[int(rng.integers(len(files)))])

        out = samples
        for kind in mixes[int(rng.integers(len(mixes)))]:
            if kind == "room":
                return reverberated(samples, draw(kind))
            count = int(rng.integers(VOICES[0], VOICES[1] + 1)) if kind == "babble" else 1
            added: Samples = np.zeros_like(samples)
            for _ in range(count):
                added = added + stretched(draw(kind), len(samples), rng)
            out = out + (with_noise(samples, added, float(rng.uniform(*SNR[kind]))) - samples)
        return np.asarray(out, dtype=np.float32)


def find_corruption(root: Path, recipe: Augmentation) -> Corruption | None:
    """The recordings in the folders that a recipe names; None where it names none. Raises BadDataset."""
    files: dict[Kind, tuple[Span, ...]] = {}
    if recipe.musan is not None:
        for kind, folder in FOLDERS.items():
            files[kind] = _audio_of(root / recipe.musan / folder, "augment.musan")
    if recipe.rirs is not None:
        files["room"] = _audio_of(root / recipe.rirs, "augment.rirs")
    return Corruption(files) if files else None


def _audio_of(folder: Path, key: str) -> tuple[Span, ...]:
    files = tuple(map(Span, audio_files(folder))) if folder.is_dir() else ()
    if not files:
        raise BadDataset(f"{key}: no audio in {folder}; name a folder under or beside the data, or leave the key out")
    return files
