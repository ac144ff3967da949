"""Clips -> examples of an epoch: shuffled, augmented, and turned into inputs by the code that serves.

What an example holds depends on the seed, the clip and the draw only, never on the batch that it falls into.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.audio.features import Features, InputSpec
from service.errors import ServiceError
from service.training.augment import Augmenter, Corruption, Random, Samples, jittered, masked, mixed_pair
from service.training.cache import ArrayCache, Arrays
from service.training.datasets.dataset import Clip, Span
from service.training.recipe import Augmentation
from service.training.recordings import Recordings, identity

ORDER = -1 % 2**32  # stands for no clip in the seed of an epoch's order
NOBODY = -1  # in place of a clip's index: noise alone
AGAIN = 100_003  # draws between two of a clip in one epoch


@dataclass(frozen=True, slots=True)
class Pick:
    """A clip, and which draw of its augmentation."""

    clip: int
    draw: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an example should be answered with."""

    clip: int  # its number
    targets: tuple[int, ...]  # classes of the clip
    partners: tuple[int, ...]  # classes of the clip that it was mixed with
    share: float  # share of the clip itself, 1 where it was not mixed


@dataclass(frozen=True, slots=True)
class Made:
    """The examples of a step."""

    picks: tuple[Pick, ...]  # those whose clips could be read
    inputs: Tensor  # `[len(picks), ...]`, as the backbone reads them
    wanted: tuple[Wanted, ...]
    faults: tuple[tuple[Span, str], ...] = ()  # clips that could not, with the reason


@dataclass(frozen=True, slots=True)
class Batches:
    """The training part as a sequence of epochs.

    Args:
        balanced: whether clips are drawn so that every class comes equally often, rather than each clip once.
        background: the class of examples that are noise alone.
    """

    clips: tuple[Clip, ...]
    recordings: Recordings
    augmentation: Augmentation
    noises: tuple[Span, ...]
    input: InputSpec
    features: Features
    size: int
    seed: int
    corruption: Corruption | None = None
    cache: ArrayCache | None = None  # keeps the features of examples that come round again (`augmentation.views`)
    balanced: bool = False
    background: int = 0

    def __len__(self) -> int:
        """Steps in an epoch; a last batch of a single clip is left out."""
        full, rest = divmod(len(self.clips), self.size)
        return max(1, full + (rest > 1))

    def epoch(self, number: int) -> Iterator[list[Pick]]:
        """Every clip once, or as many with every class alike, in an order of the epoch's own; epochs count from 1."""
        rng, count = np.random.default_rng((self.seed, number, ORDER)), len(self.clips)
        order = rng.choice(count, count, p=self._chances()) if self.balanced else rng.permutation(count)
        views, seen = self.augmentation.views, Counter[int]()
        picks = []
        for index in order.tolist():
            draw = number + AGAIN * seen[index]
            picks.append(Pick(index, (draw - 1) % views if views else draw))
            seen[index] += 1
        for step in range(len(self)):
            yield picks[step * self.size : (step + 1) * self.size]

    def _chances(self) -> NDArray[np.float64]:
        """How likely each clip is drawn: the mean over its classes of their clips' shares."""
        counts = Counter(target for clip in self.clips for target in clip.targets)
        chances = np.array([np.mean([1 / counts[target] for target in clip.targets]) for clip in self.clips])
        shares: NDArray[np.float64] = chances / chances.sum()
        return shares

    def examples(self, picks: Sequence[Pick]) -> Made:
        """The examples of a step; a clip that cannot be read any more costs its example, not the run."""
        made, kept, faults = [], [], []
        for pick in picks:
            try:
                made.append(self.example(pick))
                kept.append(pick)
            except (OSError, ServiceError) as error:
                faults.append((self.clips[pick.clip].span, str(error)))
        inputs = torch.stack([each for each, _ in made]) if made else torch.empty(0)
        return Made(tuple(kept), inputs, tuple(wanted for _, wanted in made), tuple(faults))

    def example(self, pick: Pick) -> tuple[Tensor, Wanted]:
        """The input of one pick, `[...]` as the backbone reads it, and what it should be answered with.

        Raises OSError, ServiceError: a clip cannot be read.
        """
        if self.cache is None or not self.augmentation.views:
            made = self._make(pick)
        else:
            key = f"{self._identity} {pick.draw} {pick.clip} {identity(self.clips[pick.clip].span)}"
            made = self.cache.get(key, lambda: self._make(pick))
        inputs, partner, own = torch.from_numpy(made["inputs"]), int(made["partner"]), self.clips[pick.clip].targets
        if partner == NOBODY:
            return inputs, Wanted(pick.clip, (self.background,), (self.background,), 1.0)
        return inputs, Wanted(pick.clip, own, self.clips[partner].targets, float(made["share"]))

    @property
    def _identity(self) -> str:
        """What an example follows from, beside its pick and its clip."""
        names = [str(clip.span) for clip in self.clips] if self.augmentation.mixup else []
        noises = [str(span) for span in self.noises]
        reader = type(self.features).__name__
        return f"{self.augmentation!r} {self.input!r} {reader} {self.seed} {self.corruption!r} {noises} {names}"

    def _make(self, pick: Pick) -> Arrays:
        """Input, number of the clip mixed in (itself if none, NOBODY where it is noise alone), and its own share."""
        rng = np.random.default_rng((self.seed, pick.draw, pick.clip))
        if self.augmentation.background and rng.random() < self.augmentation.background:
            piece, partner, share = self._augmenter.background(rng), NOBODY, 1.0
        else:
            piece, partner, share = self._piece(self.clips[pick.clip], rng), pick.clip, 1.0
        if partner != NOBODY and self.augmentation.mixup and rng.random() < self.augmentation.mixup:
            partner = int(rng.integers(len(self.clips)))
            piece, share = mixed_pair(piece, self._piece(self.clips[partner], rng), rng)
        inputs = self._input(torch.from_numpy(np.ascontiguousarray(piece)), rng).numpy()
        return {"inputs": inputs, "partner": np.array(partner), "share": np.array(share)}

    @property
    def _augmenter(self) -> Augmenter[Span]:
        window = self.features.window_samples(self.input.window_frames)
        return Augmenter(self.augmentation, window, self.noises, self.recordings.samples)

    def _piece(self, clip: Clip, rng: Random) -> Samples:
        """A changed piece of a clip, no longer than the window."""
        piece = self._augmenter(self.recordings.samples(clip.span), rng)
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
