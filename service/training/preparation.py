"""From a data set's lists to what a run trains on: every file of training and selection is read once, and checked.

Whatever cannot be trained is said here, before the first step.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from service.audio.waveform import MIN_SAMPLES
from service.training.batches import find_noises
from service.training.corruption import Corruption, find_corruption
from service.training.datasets.dataset import BadDataset, Dataset
from service.training.datasets.load import check_classes
from service.training.recipe import BadRecipe, Recipe
from service.training.recordings import Recordings
from service.training.selection import split_noises

NAMED = 5  # files named in a message


@dataclass(frozen=True, slots=True)
class Prepared:
    """Readable clips and noises.

    Args:
        noises: for training.
        kept_noises: for the selection part's noisy trials.
    """

    dataset: Dataset
    recordings: Recordings
    noises: tuple[Path, ...]
    kept_noises: tuple[Path, ...]
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
        BadDataset: labels that differ between the parts, an empty class, clips shorter than a frame, missing noises.
    """
    if dataset.multi_label and recipe.loss.kind != "binary_cross_entropy":
        raise BadRecipe(
            f"loss.kind {recipe.loss.kind!r} does not go with several labels a clip; use binary_cross_entropy"
        )
    if report:
        dataset.report()
    corruption = find_corruption(dataset.root, recipe.augment)
    dataset = _readable(dataset, recordings, on_clip)
    found = find_noises(dataset.root, recipe.augment.noise_files, dataset.reserved)
    readable = tuple(recordings.readable(found))
    noises, kept = split_noises(readable) if dataset.verification else (readable, ())
    return Prepared(dataset, recordings, noises, kept, corruption)


def _readable(dataset: Dataset, recordings: Recordings, on_clip: Callable[[], None]) -> Dataset:
    readable = set()
    for path in recordings.readable(clip.path for clip in dataset.train + dataset.selection):
        readable.add(path)
        on_clip()
    if recordings.short:
        named = ", ".join(str(path) for path in sorted(recordings.short)[:NAMED])
        raise BadDataset(
            f"{len(recordings.short)} clips are shorter than one frame ({MIN_SAMPLES} samples at 16 kHz): {named}; "
            "take them out of the lists"
        )
    train, selection = (
        tuple(clip for clip in part if clip.path in readable) for part in (dataset.train, dataset.selection)
    )
    check_classes(dataset, train, selection)
    return replace(dataset, train=train, selection=selection)
