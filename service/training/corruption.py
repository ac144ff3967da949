"""Noise, music, babble and rooms for speaker verification, from MUSAN and room impulse responses.

Each clip, with a chance, gets one of the four that its folders allow (the VoxCeleb recipe of Kaldi and of
clovaai/voxceleb_trainer): a noise at 0 to 15 dB, music at 5 to 15 dB, 3 to 7 voices at 13 to 20 dB each, or a room.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from service.training.augment import Random, Samples, crop, reverberated, with_noise
from service.training.datasets.dataset import BadDataset
from service.training.datasets.folders import audio_files
from service.training.recipe import Augmentation

NOISE_SNR = (0.0, 15.0)  # dB
MUSIC_SNR = (5.0, 15.0)
VOICE_SNR = (13.0, 20.0)  # of each voice of a babble
VOICES = (3, 7)

Kind = Literal["noise", "music", "babble", "room"]


@dataclass(frozen=True, slots=True)
class Corruption:
    """What clips are corrupted with.

    Args:
        files: recordings of each kind that there is: noises, music, voices, impulse responses.
        chance: of a clip to be corrupted.
    """

    files: dict[Kind, tuple[Path, ...]]
    chance: float

    def __call__(self, samples: Samples, rng: Random, read: Callable[[Path], Samples]) -> Samples:
        """A corrupted copy of a clip `[N]`, of its length; everything random is drawn from `rng`."""
        if rng.random() >= self.chance:
            return samples
        kind = sorted(self.files)[int(rng.integers(len(self.files)))]

        def draw() -> Samples:
            files = self.files[kind]
            return read(files[int(rng.integers(len(files)))])

        if kind == "room":
            return reverberated(samples, draw())
        if kind == "babble":
            voices = int(rng.integers(VOICES[0], VOICES[1] + 1))
            return babbled(samples, [draw() for _ in range(voices)], rng)
        snr = float(rng.uniform(*(NOISE_SNR if kind == "noise" else MUSIC_SNR)))
        return with_noise(samples, _cut(draw(), len(samples), rng), snr)


def find_corruption(root: Path, recipe: Augmentation) -> Corruption | None:
    """The recordings in the folders that a recipe names; None where it names none. Raises BadDataset."""
    files: dict[Kind, tuple[Path, ...]] = {}
    if recipe.musan is not None:
        folders: tuple[tuple[Kind, str], ...] = (("noise", "noise"), ("music", "music"), ("babble", "speech"))
        for kind, folder in folders:
            files[kind] = _audio_of(root / recipe.musan / folder, "augment.musan")
    if recipe.rirs is not None:
        files["room"] = _audio_of(root / recipe.rirs, "augment.rirs")
    return Corruption(files, recipe.corruption) if files else None


def babbled(samples: Samples, voices: list[Samples], rng: Random) -> Samples:
    """Clip plus voices, each at a ratio of its own to the clip alone."""
    added = [
        with_noise(samples, _cut(voice, len(samples), rng), float(rng.uniform(*VOICE_SNR))) - samples
        for voice in voices
    ]
    return np.asarray(samples + np.sum(added, axis=0), dtype=np.float32)


def _cut(noise: Samples, length: int, rng: Random) -> Samples:
    return crop(np.resize(noise, max(length, len(noise))), length, rng)


def _audio_of(folder: Path, key: str) -> tuple[Path, ...]:
    files = tuple(audio_files(folder)) if folder.is_dir() else ()
    if not files:
        raise BadDataset(f"{key}: no audio in {folder}; name a folder under or beside the data, or leave the key out")
    return files
