"""Picks the reader of a data set's layout and checks that there is something to learn. Opens no audio."""

from collections import Counter
from pathlib import Path

from service.training.datasets import (
    digits,
    esc,
    folders,
    fsd50k,
    gtzan,
    keywords,
    speakers,
    speech_commands,
    table,
    voxceleb,
)
from service.training.datasets.dataset import BadDataset, Clip, Dataset
from service.training.sources import (
    DigitSource,
    EscSource,
    FolderSource,
    Fsd50kSource,
    GtzanSource,
    KeywordSource,
    Source,
    SpeakerSource,
    SpeechCommandsSource,
    TableSource,
    VoxCelebSource,
)


def load_dataset(root: Path, source: Source) -> Dataset:
    """Read a data set's lists; its report part stays closed.

    Raises:
        BadDataset: the folder does not have the layout of `source`.
    """
    if not root.is_dir():
        raise BadDataset(f"data folder {root} does not exist")
    dataset = _read(root, source)
    for part, clips in (("training", dataset.train), ("selection", dataset.selection)):
        if not clips:
            raise BadDataset(f"{root}: the {part} part has no clips")
    return dataset


def _read(root: Path, source: Source) -> Dataset:
    match source:
        case EscSource():
            return esc.read_esc(root, source)
        case KeywordSource():
            return keywords.read_keywords(root, source)
        case DigitSource():
            return digits.read_digits(root, source)
        case GtzanSource():
            return gtzan.read_gtzan(root, source)
        case SpeechCommandsSource():
            return speech_commands.read_speech_commands(root, source)
        case Fsd50kSource():
            return fsd50k.read_fsd50k(root, source)
        case FolderSource():
            return folders.read_folders(root, source)
        case TableSource():
            return table.read_csv(root, source)
        case SpeakerSource():
            return speakers.read_speakers(root, source)
        case VoxCelebSource():
            return voxceleb.read_voxceleb(root, source)


def check_classes(dataset: Dataset, train: tuple[Clip, ...], selection: tuple[Clip, ...]) -> None:
    """What is left when unreadable clips have gone must still teach and judge every class. Raises BadDataset."""
    counts = Counter(target for clip in train for target in clip.targets)
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
    for is_layout, source in (
        ((root / esc.TABLE).exists(), EscSource(kind="esc")),
        ((root / fsd50k.DEV).exists(), Fsd50kSource(kind="fsd50k")),
        ((root / speakers.TRAIN_LIST).exists(), SpeakerSource(kind="speakers")),
        ((root / voxceleb.TRIALS).exists(), VoxCelebSource(kind="voxceleb")),
        ((root / speech_commands.SELECTION).exists(), SpeechCommandsSource(kind="speech-commands")),
        ((root / keywords.TRAIN).exists(), KeywordSource(kind="keywords")),
        ((root / digits.TABLE).exists(), DigitSource(kind="digits")),
        ((root / "clips.csv").exists(), TableSource(kind="csv")),
        (gtzan.is_gtzan(root), GtzanSource(kind="gtzan")),
        (len(folders.class_folders(root)) > 1, FolderSource(kind="folders")),
    ):
        if is_layout:
            found: Source = source
            return found
    raise BadDataset(
        f"{root} has no layout known here: expected meta/esc50.csv, FSD50K.ground_truth/, train_list.txt, "
        "veri_test.txt, validation_list.txt, train.csv, metadata.csv, clips.csv, genres/ or a folder per class"
    )
