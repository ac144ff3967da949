"""Makes the batch of any step of pre-training: windows as they are, as the student hears them, and what teachers heard.

A batch follows from the recipe's seed, the clips and the step's number alone, which is what makes a resumed run equal
to an uninterrupted one. Teachers hear a clip when it is first drawn, whole and undistorted; a cache keeps the answers.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.audio.waveform import MIN_SAMPLES
from service.training.augment import Augmenter, Random, Samples, resampled
from service.training.cache import ArrayCache
from service.training.pretraining.clips import Clip, Clips
from service.training.pretraining.recipe import PretrainRecipe
from service.training.pretraining.teachers import Target, Teacher

TRIES = 3  # places in a clip of which the loudest is taken: events and words may be short
FITTED = 64  # clips that the mean and deviation of a teacher's frames are taken from
STRETCH = (5, 12)  # frames that are masked at once
MASKED = 0.3  # share of a masked window's frames, about


@dataclass(frozen=True, slots=True)
class Batch:
    """The windows of one length in a step.

    Args:
        targets: one for each teacher: `[B, E]` of the clip, or `[B, T, E]`, standardised, NaN where there is none.
    """

    heard: Tensor  # by the student, `[B, N]`
    clean: Tensor  # the same windows undistorted
    masked: Tensor  # frames that the student does not get, `[B, T]`
    targets: tuple[Tensor, ...]

    def to(self, device: torch.device) -> "Batch":
        heard, clean, masked, *targets = (
            each.to(device) for each in (self.heard, self.clean, self.masked, *self.targets)
        )
        return Batch(heard, clean, masked, tuple(targets))


class Batches:
    """Draws batches. `sizes` are those of the teachers' targets."""

    def __init__(
        self,
        recipe: PretrainRecipe,
        sources: Sequence[Clips],
        teachers: Sequence[Teacher],
        cache: ArrayCache | None = None,
    ) -> None:
        self._recipe, self._teachers, self._cache = recipe, teachers, cache
        self._sources = sorted(sources, key=lambda source: source.rows.window)
        self._noises = [clip for source in sources if source.rows.noise for clip in source.clips]
        self._heard: dict[tuple[Clip, float], list[Target]] = {}
        rng = np.random.default_rng((recipe.seed, 2))
        everything = [clip for source in self._sources for clip in source.clips]
        drawn = [self._ask((everything[int(rng.integers(len(everything)))], 1.0)) for _ in range(FITTED)]
        self._scales = []
        for number, teacher in enumerate(teachers):
            values = np.concatenate([each[number].values for each in drawn])
            mean, deviation = values.mean(axis=0), values.std(axis=0) + np.float32(1e-3)
            self._scales.append((np.float32(0), np.float32(1)) if teacher.of_clip else (mean, deviation))
        self.sizes = [target.values.shape[1] for target in drawn[0]]

    def step(self, number: int) -> list[Batch]:
        """The batches of one step, one for each length of window that the recipe has."""
        rng = np.random.default_rng((self._recipe.seed, 1, number))
        by_length = groupby(self._sources, lambda source: source.rows.samples)
        return [self._batch(length, list(sources), rng) for length, sources in by_length]

    def _batch(self, length: int, sources: list[Clips], rng: Random) -> Batch:
        drawn = [
            (source.clips[int(rng.integers(len(source.clips)))], float(rng.choice(source.rows.speeds)))
            for source in sources
            for _ in range(source.rows.rows)
        ]
        windows = [cut(read(), length, speed, rng) for read, speed in drawn]
        augment = Augmenter(self._recipe.augment, length, self._noises, lambda read: read())
        geometry, targets = self._recipe.geometry, [self._ask(each) for each in drawn]
        frames = geometry.frames(length)
        centres = np.arange(frames) * geometry.hop + geometry.receptive_field / 2

        def stacked(teacher: int) -> Tensor:
            rows = [at(each[teacher], centres + start) for each, (_, start) in zip(targets, windows, strict=True)]
            mean, deviation = self._scales[teacher]
            return torch.from_numpy((np.stack(rows) - mean) / deviation)

        return Batch(
            heard=torch.from_numpy(np.stack([augment(window, rng) for window, _ in windows])),
            clean=torch.from_numpy(np.stack([window for window, _ in windows])),
            masked=torch.from_numpy(np.stack([masks(frames, self._recipe.mask, rng) for _ in windows])),
            targets=tuple(stacked(teacher) for teacher in range(len(self._teachers))),
        )

    def _ask(self, drawn: tuple[Clip, float]) -> list[Target]:
        """What every teacher makes of a clip at a speed."""
        if drawn not in self._heard:
            samples = resampled(drawn[0](), drawn[1])
            self._heard[drawn] = [self._hear(teacher, samples) for teacher in self._teachers]
        return self._heard[drawn]

    def _hear(self, teacher: Teacher, samples: Samples) -> Target:
        if self._cache is None:
            return teacher.hear(samples)
        key = f"target {teacher.name} {teacher.of_clip} {hashlib.sha256(samples.tobytes()).hexdigest()}"
        kept = self._cache.get(
            key, lambda: {name: np.asarray(value) for name, value in asdict(teacher.hear(samples)).items()}
        )
        return Target(kept["values"], float(kept["first"]), float(kept["step"]))


def cut(samples: Samples, length: int, speed: float, rng: Random) -> tuple[Samples, int]:
    """A window `[length]` of a clip played at a speed, and where in what is played it starts.

    Of a longer clip the loudest of TRIES places; a shorter one lies anywhere in silence, so that the start is negative.
    """
    out, whole = np.zeros(length, np.float32), max(MIN_SAMPLES, int(len(samples) / speed))
    if whole <= length:
        before = int(rng.integers(length - whole + 1))
        out[before : before + whole] = resampled(samples, speed)
        return out, -before
    starts = rng.integers(0, whole - length + 1, TRIES)
    pieces = [samples[int(start * speed) : int((start + length) * speed) + 2] for start in starts]
    best = int(np.argmax([np.mean(np.square(piece)) for piece in pieces]))
    window = resampled(pieces[best], speed)[:length]
    out[: len(window)] = window
    return out, int(starts[best])


def at(target: Target, places: NDArray[Any]) -> Samples:
    """A target `[T, E]` at samples of its clip, between frames, NaN half a step beyond them; of a clip `[E]`."""
    if not target.step:
        return target.values.reshape(-1)
    position, last = (places - target.first) / target.step, len(target.values) - 1
    within = np.clip(position, 0, last)
    before = within.astype(int)
    share = (within - before)[:, None].astype(np.float32)
    values: Samples = (1 - share) * target.values[before] + share * target.values[np.minimum(before + 1, last)]
    values[np.abs(position - within) > 0.5] = np.nan
    return values


def masks(frames: int, chance: float, rng: Random) -> NDArray[np.bool_]:
    """Which of `[frames]` are taken away: with a chance, stretches that make about MASKED of them."""
    out = np.zeros(frames, bool)
    if rng.random() < chance:
        while out.mean() < MASKED:
            start = int(rng.integers(frames))
            out[start : start + int(rng.integers(*STRETCH))] = True
    return out
