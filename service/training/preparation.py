"""From a data set's lists to what a run trains on: every file of training and selection is read once, and checked.

Whatever cannot be trained is said here, before the first step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from service.training.augment import Corruption, find_corruption
from service.training.datasets.dataset import BadDataset, Dataset, Span, matching
from service.training.datasets.load import check_classes
from service.training.recipe import BadRecipe, Recipe
from service.training.recordings import Recordings

NOISE_EVERY = 4  # one of so many noise files is kept for selection


@dataclass(frozen=True, slots=True)
class Prepared:
    """Readable clips and noises."""

    recipe: Recipe
    dataset: Dataset
    recordings: Recordings
    noises: tuple[Span, ...]  # for training
    kept_noises: tuple[Span, ...]  # for the selection part's noisy trials
    corruption: Corruption | None


def prepare(
    recipe: Recipe, dataset: Dataset, recordings: Recordings, *, report: bool, on_clip: Callable[[], None]
) -> Prepared:
    """Read and check what a run needs.

    Args:
        report: whether the report part will be measured; its lists (no clip of it) are checked then.
        on_clip: called for every clip that has been read.

    Raises:
        BadRecipe: clips have several labels and the loss allows one.
        BadDataset: labels that differ between the parts, an empty class, missing noises.
    """
    if dataset.multi_label and recipe.loss.kind != "binary_cross_entropy":
        raise BadRecipe(
            f"loss.kind {recipe.loss.kind!r} does not go with several labels a clip; use binary_cross_entropy"
        )
    if report:
        dataset.report()
    corruption = find_corruption(dataset.root, recipe.augment)
    dataset = _readable(dataset, recordings, on_clip)
    found = matching(dataset.root, recipe.augment.noise_files)
    readable = tuple(recordings.readable(noise for noise in found if noise.path.name not in dataset.reserved))
    noises, kept = split_noises(readable) if dataset.verification else (readable, ())
    return Prepared(recipe, dataset, recordings, noises, kept, corruption)


def split_noises(noises: Sequence[Span]) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Noise files for training, and those kept for the selection part's noisy trials."""
    kept = tuple(noises[::NOISE_EVERY]) if len(noises) >= NOISE_EVERY else ()
    return tuple(noise for noise in noises if noise not in kept), kept


def _readable(dataset: Dataset, recordings: Recordings, on_clip: Callable[[], None]) -> Dataset:
    if not any(clip.span.path.exists() for clip in dataset.train):
        where = dataset.train[0].span.path
        raise BadDataset(f"none of the training clips exists, such as {where}; data.tables.file says where they lie")
    readable = set()
    for span in recordings.readable(clip.span for clip in dataset.train + dataset.selection):
        readable.add(span)
        on_clip()
    train, selection = (
        tuple(clip for clip in part if clip.span in readable) for part in (dataset.train, dataset.selection)
    )
    check_classes(dataset, train, selection)
    return replace(dataset, train=train, selection=selection)
