"""Picks the reader of a data set's layout and checks that there is something to learn. Opens no audio."""

from collections import Counter
from pathlib import Path

from service.training.datasets.classes import read_digits, read_esc, read_keywords
from service.training.datasets.dataset import BadDataset, Clip, Dataset
from service.training.datasets.speakers import read_speakers
from service.training.recipe import DigitSource, EscSource, KeywordSource, Source, SpeakerSource


def load_dataset(root: Path, source: Source) -> Dataset:
    """Read a data set's lists; its report part stays closed.

    Raises:
        BadDataset: the folder does not have the layout of `source`.
    """
    if not root.is_dir():
        raise BadDataset(f"data folder {root} does not exist")
    match source:
        case EscSource():
            dataset = read_esc(root, source)
        case KeywordSource():
            dataset = read_keywords(root, source)
        case DigitSource():
            dataset = read_digits(root, source)
        case SpeakerSource():
            return _checked(read_speakers(root, source))
    return _checked(dataset)


def _checked(dataset: Dataset) -> Dataset:
    for part, clips in (("training", dataset.train), ("selection", dataset.selection)):
        if not clips:
            raise BadDataset(f"{dataset.root}: the {part} part has no clips")
    return dataset


def check_classes(dataset: Dataset, train: tuple[Clip, ...], selection: tuple[Clip, ...]) -> None:
    """What is left when unreadable clips have gone must still teach and judge every class. Raises BadDataset."""
    counts = Counter(clip.target for clip in train)
    wanted = {clip.target for clip in dataset.train} if dataset.verification else set(range(len(dataset.labels)))
    empty = [dataset.labels[target] for target in sorted(wanted) if not counts[target]]
    if empty:
        raise BadDataset(f"{dataset.root}: no readable training clip of {', '.join(empty)}")
    if len(counts) < 2:
        raise BadDataset(f"{dataset.root}: training needs two classes or more, got {len(counts)}")
    judged = Counter(clip.target for clip in selection)
    if not judged or (dataset.verification and (len(judged) < 2 or max(judged.values()) < 2)):
        raise BadDataset(f"{dataset.root}: too few readable clips in the selection part ({judged.total()})")


def guess_source(root: Path) -> Source:
    """The source that a folder looks like, with default options, for evaluating a bundle that does not say.

    Raises:
        BadDataset: no known layout.
    """
    if (root / "meta" / "esc50.csv").exists():
        return EscSource(kind="esc")
    if (root / "train_list.txt").exists():
        return SpeakerSource(kind="speakers")
    if (root / "train.csv").exists():
        return KeywordSource(kind="keywords")
    if (root / "metadata.csv").exists():
        return DigitSource(kind="digits")
    raise BadDataset(
        f"{root} has no layout known here: expected meta/esc50.csv, train_list.txt, train.csv or metadata.csv"
    )
