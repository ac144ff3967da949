"""VoxCeleb1 (Nagrani et al. 2017) as it unpacks: a folder per speaker, and `veri_test.txt`. Opens no audio."""

from pathlib import Path

from service.training.datasets.dataset import BadDataset, Clip, Dataset, Report, last_groups, read_lines
from service.training.datasets.folders import audio_files, class_folders
from service.training.datasets.trials import read_trials
from service.training.sources import VoxCelebSource

FOLDERS = ("wav", "dev/wav", "test/wav")
TRIALS = "veri_test.txt"


def read_voxceleb(root: Path, source: VoxCelebSource) -> Dataset:
    """Speakers of no trial are trained on, but for the last ones, which make the selection part.

    The report's lists are opened for the names of their speakers. Raises BadDataset.
    """
    bases = [root / folder for folder in FOLDERS if (root / folder).is_dir()]
    if not bases:
        raise BadDataset(f"{root}: expected folders wav/<speaker>/<video>/ (or dev/wav/ and test/wav/)")
    of_report = {speaker for file in source.trials.values() for speaker in _speakers(root / file)}
    folders = {name: folder for base in bases for name, folder in class_folders(base).items() if name not in of_report}
    held_out = last_groups(folders, source.selection_speakers)
    ordered = sorted(folders, key=lambda speaker: (speaker in held_out, speaker))
    train, selection = [], []
    for target, speaker in enumerate(ordered):
        files = audio_files(folders[speaker])
        if speaker in held_out:
            selection += [Clip(path, target, speaker) for path in _spread(files, source.selection_clips)]
        else:
            train += [Clip(path, target, speaker) for path in files]
    return Dataset(
        root,
        labels=tuple(ordered),
        train=tuple(train),
        selection=tuple(selection),
        report=lambda: Report(
            trials=tuple(
                read_trials(name, root / file, lambda path: _place(bases, path)) for name, file in source.trials.items()
            )
        ),
        verification=True,
    )


def _speakers(path: Path) -> set[str]:
    return {Path(clip).parts[0] for _, *clips in read_lines(path, 3, "label path path") for clip in clips}


def _spread(files: list[Path], count: int) -> list[Path]:
    """At most so many files, evenly spread, so that many videos are heard: every pair of them is a trial."""
    return files if len(files) <= count else [files[len(files) * index // count] for index in range(count)]


def _place(bases: list[Path], path: str) -> Path:
    for base in bases:
        if (base / path).exists():
            return base / path
    return bases[0] / path
