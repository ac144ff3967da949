"""Mean and standard deviation of a data set's filter bank, which AST adapters normalise by.

The convention is AST's: over everything that the model would read of the training part, so one window of each clip
from its beginning, what fills short clips included, without augmentation; inputs become `(x - mean) / (2 * std)`.
AST's own script averages the figures of batches, this one takes them over all values at once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from service.audio.features import FILTER_BANK, InputSpec
from service.model.loading import input_statistics
from service.model.spec import BackboneSpec, ModelType
from service.training.datasets.dataset import BadDataset
from service.training.datasets.load import load_dataset
from service.training.recipe import Recipe
from service.training.recordings import Recordings


@dataclass(frozen=True, slots=True)
class NormStats:
    mean: float
    std: float
    clips: int
    skipped: int  # files that could not be read


def norm_stats(recipe: Recipe, data: Path, on_clip: Callable[[], None] = lambda: None) -> NormStats:
    """Statistics of the training part that a recipe's `[data]` and `[input]` say. Raises BadDataset."""
    dataset = load_dataset(data, recipe.data)
    spec = InputSpec(recipe.input.window_frames, short=recipe.input.short or "zeros")
    recordings = Recordings(memory_seconds=0.0)
    count, total, squares, clips = 0, 0.0, 0.0, 0
    for span in recordings.readable(clip.span for clip in dataset.train):
        values = FILTER_BANK.windows(torch.from_numpy(recordings.samples(span)), spec).inputs.double()
        count, clips = count + values.numel(), clips + 1
        total, squares = total + float(values.sum()), squares + float(values.square().sum())
        on_clip()
    if not count:
        raise BadDataset(f"none of {len(dataset.train)} training clips in {data} could be read")
    mean = total / count
    return NormStats(mean, math.sqrt(max(squares / count - mean**2, 0.0)), clips, len(recordings.faults))


def with_backbone_norm(recipe: Recipe, backbone: BackboneSpec) -> Recipe:
    """The recipe; where it gives neither mean nor std, with those that its AST backbone names, if it does."""
    if backbone.model_type is not ModelType.AST or recipe.input.mean is not None or recipe.input.std is not None:
        return recipe
    named = input_statistics(backbone.name)
    if named is None:
        return recipe
    mean, std = named
    return recipe.model_copy(update={"input": recipe.input.model_copy(update={"mean": mean, "std": std})})
