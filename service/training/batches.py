"""Clips -> examples of an epoch: shuffled, augmented, and turned into inputs by the code that serves. Knows no losses.

What an example holds depends on the seed, the clip and the draw only, never on the batch that it falls into.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from service.audio.features import InputSpec, ast_windows, wav2vec2_windows
from service.training.augment import Augmenter, Random, Samples, jittered, masked, mixed_pair, window_samples
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
class Batches:
    """The training part as a sequence of epochs."""

    clips: tuple[Clip, ...]
    recordings: Recordings
    augmentation: Augmentation
    noises: tuple[Path, ...]
    input: InputSpec
    is_ast: bool
    size: int
    seed: int
    corruption: Corruption | None = None

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

    def example(self, pick: Pick) -> tuple[Tensor, Wanted]:
        """The input of one pick, `[...]` as the backbone reads it, and what it should be answered with."""
        rng = np.random.default_rng((self.seed, pick.draw, pick.clip))
        clip = self.clips[pick.clip]
        piece = self._piece(clip, rng)
        partner, share = clip, 1.0
        if self.augmentation.mixup and rng.random() < self.augmentation.mixup:
            partner = self.clips[int(rng.integers(len(self.clips)))]
            piece, share = mixed_pair(piece, self._piece(partner, rng), rng)
        inputs = self._input(torch.from_numpy(np.ascontiguousarray(piece)), rng)
        return inputs, Wanted(clip.targets, partner.targets, share)

    def _piece(self, clip: Clip, rng: Random) -> Samples:
        """A changed piece of a clip, no longer than the window."""
        window = window_samples(self.input.window_frames, self.is_ast)
        augmenter = Augmenter(self.augmentation, window, self.noises, self.recordings.samples)
        piece = augmenter(self.recordings.samples(clip.path), rng)
        return piece if self.corruption is None else self.corruption(piece, rng, self.recordings.samples)

    def _input(self, samples: Tensor, rng: Random) -> Tensor:
        spec = replace(self.input, windows=1)
        if not self.is_ast:
            return wav2vec2_windows(samples, spec).inputs[0]
        recipe = self.augmentation
        frames = ast_windows(samples, spec).inputs[0]
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
