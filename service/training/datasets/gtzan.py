"""GTZAN (Tzanetakis and Cook 2002): a folder per genre, with or without the fault-filtered lists. Opens no audio.

The data set has no split of its own. Without lists the last digit of a file's number decides, so that every genre
is split alike. The fault-filtered lists (Kereliuk, Sturm, Larsen 2015) leave out repeated and damaged recordings.
"""

import re
from pathlib import Path

from service.training.datasets.dataset import BadDataset, Clip, Dataset, Report, read_names, target_of
from service.training.datasets.folders import audio_files, class_folders
from service.training.sources import GtzanSource

FOLDERS = ("genres", "genres_original", ".")
_NUMBER = re.compile(r"\.(\d+)$")


def read_gtzan(root: Path, source: GtzanSource) -> Dataset:
    """Clips of every genre, split by number or by lists. Raises BadDataset."""
    genres = _genres(root)
    labels = tuple(genres)
    clips = [
        Clip(path, target, _number(path))
        for target, folder in enumerate(genres.values())
        for path in audio_files(folder)
    ]
    if source.lists is not None:
        train, selection, report = source.lists
        return Dataset(
            root,
            labels,
            train=_listed(root / train, clips, labels),
            selection=_listed(root / selection, clips, labels),
            report=lambda: Report(clips=_listed(root / report, clips, labels)),
        )
    held_out = {str(source.selection_digit), str(source.report_digit)}
    return Dataset(
        root,
        labels,
        train=tuple(clip for clip in clips if clip.group[-1] not in held_out),
        selection=tuple(clip for clip in clips if clip.group[-1] == str(source.selection_digit)),
        report=lambda: Report(clips=tuple(clip for clip in clips if clip.group[-1] == str(source.report_digit))),
    )


def is_gtzan(root: Path) -> bool:
    return any((root / folder).is_dir() for folder in FOLDERS[:2])


def _genres(root: Path) -> dict[str, Path]:
    for folder in FOLDERS:
        found = class_folders(root / folder)
        if len(found) > 1:
            return found
    raise BadDataset(f"{root}: expected folders genres/<genre>/ with .wav or .au files")


def _number(path: Path) -> str:
    """What stands behind the last point of `blues.00012.wav`."""
    number = _NUMBER.search(path.stem)
    if number is None:
        raise BadDataset(f"{path}: expected a name as in blues.00012.wav")
    return number[1]


def _listed(path: Path, clips: list[Clip], labels: tuple[str, ...]) -> tuple[Clip, ...]:
    """The clips of a list, whatever their suffixes; a file that is not there is skipped later, by name."""
    by_name = {(labels[clip.target], clip.path.stem): clip for clip in clips}
    listed = []
    for name in read_names(path, "genre/file"):
        genre, stem = Path(name).parent.name, Path(name).stem
        missing = Clip(path.parent / name, target_of(genre, labels, path), "")
        listed.append(by_name.get((genre, stem), missing))
    return tuple(listed)
