"""Speech Commands (Warden 2018), versions 1 and 2, with the official lists. Opens no audio."""

from pathlib import Path

from service.training.datasets.dataset import BadDataset, Clip, Dataset, Report, read_names, target_of
from service.training.datasets.folders import audio_files, class_folders
from service.training.sources import SpeechCommandsSource

FORM = "word/file"  # a line of the lists
TRAIN, SELECTION, REPORT = "training_list.txt", "validation_list.txt", "testing_list.txt"


def read_speech_commands(root: Path, source: SpeechCommandsSource) -> Dataset:
    """What neither official list names is for training, unless there is a list of that too. Raises BadDataset."""
    folders = class_folders(root)
    labels = source.words or tuple(folders)
    unknown = sorted(set(labels) - set(folders))
    if unknown or not labels:
        raise BadDataset(f"{root}: expected a folder per word; lacks {', '.join(unknown) or 'all'}")
    selection = _clips(root, SELECTION, labels, source)
    if (root / TRAIN).exists():
        train = _clips(root, TRAIN, labels, source)
    else:
        held_out = {name for file in (SELECTION, REPORT) for name in read_names(root / file, FORM)}
        train = tuple(
            Clip(path, target, _speaker(path))
            for target, word in enumerate(labels)
            for path in audio_files(folders[word])
            if f"{word}/{path.name}" not in held_out
        )
    return Dataset(root, labels, train, selection, report=lambda: Report(clips=_clips(root, REPORT, labels, source)))


def _clips(root: Path, file: str, labels: tuple[str, ...], source: SpeechCommandsSource) -> tuple[Clip, ...]:
    """Clips of a list; words that the recipe does not name are left out."""
    names = [(Path(name).parent.name, root / name) for name in read_names(root / file, FORM)]
    return tuple(
        Clip(path, target_of(word, labels, root / file), _speaker(path))
        for word, path in names
        if not source.words or word in labels
    )


def _speaker(path: Path) -> str:
    return path.name.split("_nohash_", 1)[0]
