"""Clips -> examples of an epoch: shuffled, augmented, and turned into inputs by the code that serves. Knows no losses.

What an example holds depends on the seed, the clip and the draw only, never on the batch that it falls into.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from service.audio.features import Features, InputSpec
from service.errors import ServiceError
from service.training.augment import Augmenter, Random, Samples, jittered, masked, mixed_pair
from service.training.cache import ArrayCache, Arrays, identity
from service.training.corruption import Corruption
from service.training.datasets.dataset import Clip
from service.training.recipe import Augmentation
from service.training.recordings import Recordings

ORDER = -1 % 2**32  # stands for no clip in the seed of an epoch's order


@dataclass(frozen=True, slots=True)
class Pick:
    """A clip, and which draw of its augmentation."""

    clip: int
    draw: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an example should be answered with.

    Args:
        targets: classes of the clip.
        partners: classes of the clip that it was mixed with.
        share: share of the clip itself, 1 where it was not mixed.
    """

    targets: tuple[int, ...]
    partners: tuple[int, ...]
    share: float


@dataclass(frozen=True, slots=True)
class Made:
    """The examples of a step.

    Args:
        picks: those whose clips could be read.
        inputs: `[len(picks), ...]`, as the backbone reads them.
        faults: clips that could not, with the reason.
    """

    picks: tuple[Pick, ...]
    inputs: Tensor
    wanted: tuple[Wanted, ...]
    faults: tuple[tuple[Path, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Batches:
    """The training part as a sequence of epochs.

    Args:
        cache: keeps the features of examples that come round again (`augmentation.views`).
    """

    clips: tuple[Clip, ...]
    recordings: Recordings
    augmentation: Augmentation
    noises: tuple[Path, ...]
    input: InputSpec
    features: Features
    size: int
    seed: int
    corruption: Corruption | None = None
    cache: ArrayCache | None = None

    def __len__(self) -> int:
        """Steps in an epoch; a last batch of a single clip is left out."""
        full, rest = divmod(len(self.clips), self.size)
        return max(1, full + (rest > 1))

    def epoch(self, number: int) -> Iterator[list[Pick]]:
        """Every clip once, in an order of the epoch's own; epochs count from 1."""
        order = np.random.default_rng((self.seed, number, ORDER)).permutation(len(self.clips))
        views = self.augmentation.views
        draw = (number - 1) % views if views else number
        for step in range(len(self)):
            yield [Pick(int(index), draw) for index in order[step * self.size : (step + 1) * self.size]]

    def examples(self, picks: Sequence[Pick]) -> Made:
        """The examples of a step; a clip that cannot be read any more costs its example, not the run."""
        made, kept, faults = [], [], []
        for pick in picks:
            try:
                made.append(self.example(pick))
                kept.append(pick)
            except (OSError, ServiceError) as error:
                faults.append((self.clips[pick.clip].path, str(error)))
        inputs = torch.stack([each for each, _ in made]) if made else torch.empty(0)
        return Made(tuple(kept), inputs, tuple(wanted for _, wanted in made), tuple(faults))

    def example(self, pick: Pick) -> tuple[Tensor, Wanted]:
        """The input of one pick, `[...]` as the backbone reads it, and what it should be answered with.

        Raises:
            OSError, ServiceError: a clip cannot be read.
        """
        if self.cache is None or not self.augmentation.views:
            inputs, partner, share = self._make(pick)
        else:
            key = f"{self._identity} {pick.draw} {pick.clip} {identity(self.clips[pick.clip].path)}"
            kept = self.cache.get(key, lambda: self._arrays(pick))
            inputs, partner, share = torch.from_numpy(kept["inputs"]), int(kept["partner"]), float(kept["share"])
        return inputs, Wanted(self.clips[pick.clip].targets, self.clips[partner].targets, share)

    @property
    def _identity(self) -> str:
        """What an example follows from, beside its pick and its clip."""
        names = [str(clip.path) for clip in self.clips] if self.augmentation.mixup else []
        noises = [str(path) for path in self.noises]
        reader = type(self.features).__name__
        return f"{self.augmentation!r} {self.input!r} {reader} {self.seed} {self.corruption!r} {noises} {names}"

    def _arrays(self, pick: Pick) -> Arrays:
        inputs, partner, share = self._make(pick)
        return {"inputs": inputs.numpy(), "partner": np.array(partner), "share": np.array(share)}

    def _make(self, pick: Pick) -> tuple[Tensor, int, float]:
        """Input, index of the clip that it was mixed with (itself if none), and its own share."""
        rng = np.random.default_rng((self.seed, pick.draw, pick.clip))
        clip = self.clips[pick.clip]
        piece = self._piece(clip, rng)
        partner, share = pick.clip, 1.0
        if self.augmentation.mixup and rng.random() < self.augmentation.mixup:
            partner = int(rng.integers(len(self.clips)))
            piece, share = mixed_pair(piece, self._piece(self.clips[partner], rng), rng)
        return self._input(torch.from_numpy(np.ascontiguousarray(piece)), rng), partner, share

    def _piece(self, clip: Clip, rng: Random) -> Samples:
        """A changed piece of a clip, no longer than the window."""
        window = self.features.window_samples(self.input.window_frames)
        augmenter = Augmenter(self.augmentation, window, self.noises, self.recordings.samples)
        piece = augmenter(self.recordings.samples(clip.path), rng)
        return piece if self.corruption is None else self.corruption(piece, rng, self.recordings.samples)

    def _input(self, samples: Tensor, rng: Random) -> Tensor:
        spec = replace(self.input, windows=1)
        frames = self.features.windows(samples, spec).inputs[0]
        if frames.ndim == 1:  # samples, which have no bins to mask
            return frames
        recipe = self.augmentation
        if recipe.time_mask or recipe.frequency_mask:
            zero = -self.input.mean / (2 * self.input.std)
            frames = masked(frames, recipe.time_mask, recipe.frequency_mask, zero, rng)
        return jittered(frames, rng) if recipe.input_noise else frames


def find_noises(root: Path, patterns: Sequence[str], reserved: frozenset[str]) -> tuple[Path, ...]:
    """Files under the data folder that match, in order, without those that the report part uses."""
    found: list[Path] = []
    for pattern in patterns:
        folder, _, name = pattern.rpartition("/")
        found += sorted((root / folder).glob(name))
    return tuple(path for path in found if path.is_file() and path.name not in reserved)
