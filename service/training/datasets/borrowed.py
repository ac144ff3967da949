"""Adds clips of another data set, a folder for each word, to a data set's training part. Opens no audio."""

from dataclasses import replace
from pathlib import Path

from service.training.datasets.dataset import BadDataset, Clip, Dataset, read_names, target_of
from service.training.datasets.folders import audio_files
from service.training.recipe import Borrowed

BORROWED = "borrowed"  # the group of its clips


def with_borrowed(dataset: Dataset, borrowed: Borrowed) -> Dataset:
    """The data set with one more training clip for every file of the words that the recipe names.

    Raises:
        BadDataset: a label that the data set does not have, a word without clips, or a list that cannot be read.
    """
    root = dataset.root / borrowed.folder
    listed = None if borrowed.list is None else {root / name for name in read_names(root / borrowed.list, "word/file")}
    clips: list[Clip] = []
    for label, word in borrowed.words.items():
        target = target_of(label, dataset.labels, Path("borrowed.words"))
        files = audio_files(root / word)
        if listed is not None:
            files = [path for path in files if path in listed]
        if not files:
            raise BadDataset(f"{root / word} holds no clip to borrow for label {label!r}")
        clips += [Clip(path, target, BORROWED) for path in files]
    return replace(dataset, train=dataset.train + tuple(clips))
