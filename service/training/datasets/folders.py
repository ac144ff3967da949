"""A folder per class, split by folders above them or by position; and what is audio in a folder. Opens no audio."""

from pathlib import Path

from service.training.datasets.dataset import BadDataset, Clip, Dataset, Report, target_of
from service.training.sources import FolderSource

SUFFIXES = frozenset({".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".webm", ".au"})
PARTS = {"train": ("train",), "selection": ("selection", "val", "valid"), "report": ("report", "test")}
SELECTION_PLACE, REPORT_PLACE = 8, 9  # of every ten clips of a class, by name


def read_folders(root: Path, source: FolderSource) -> Dataset:
    """`train/<class>/*`, `selection/...` and `report/...`, or `<class>/*` alone. Raises BadDataset."""
    return _read_parts(root) if (root / PARTS["train"][0]).is_dir() else _read_classes(root)


def audio_files(folder: Path) -> list[Path]:
    """Audio files of a folder and those below, by name."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def class_folders(root: Path) -> dict[str, Path]:
    """Folders with audio by name; hidden ones and those that start with an underscore are no classes."""
    if not root.is_dir():
        return {}
    folders = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] not in "._")
    return {path.name: path for path in folders if audio_files(path)}


def _read_classes(root: Path) -> Dataset:
    folders = class_folders(root)
    if len(folders) < 2:
        raise BadDataset(f"{root}: expected a folder per class, or train/, selection/ and report/ with such folders")
    labels = tuple(folders)
    placed = [
        (position % 10, Clip(path, target, ""))
        for target, folder in enumerate(folders.values())
        for position, path in enumerate(audio_files(folder))
    ]
    held_out = (SELECTION_PLACE, REPORT_PLACE)
    return Dataset(
        root,
        labels,
        train=tuple(clip for place, clip in placed if place not in held_out),
        selection=tuple(clip for place, clip in placed if place == SELECTION_PLACE),
        report=lambda: Report(clips=tuple(clip for place, clip in placed if place == REPORT_PLACE)),
    )


def _read_parts(root: Path) -> Dataset:
    labels = tuple(class_folders(_part(root, "train")))
    return Dataset(
        root,
        labels,
        train=_clips(_part(root, "train"), labels),
        selection=_clips(_part(root, "selection"), labels),
        report=lambda: Report(clips=_clips(_part(root, "report"), labels)),
    )


def _part(root: Path, part: str) -> Path:
    for name in PARTS[part]:
        if (root / name).is_dir():
            return root / name
    raise BadDataset(f"{root} has no folder {' or '.join(PARTS[part])}")


def _clips(part: Path, labels: tuple[str, ...]) -> tuple[Clip, ...]:
    return tuple(
        Clip(path, target_of(name, labels, folder), "")
        for name, folder in class_folders(part).items()
        for path in audio_files(folder)
    )
