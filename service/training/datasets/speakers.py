"""Speaker verification in VoxCeleb's layout: training list, trial lists, a fixed noisy condition. Opens no audio."""

from pathlib import Path

from service.training.datasets.dataset import (
    BadDataset,
    Clip,
    Dataset,
    Distortion,
    Report,
    TrialList,
    last_groups,
    read_lines,
    read_table,
)
from service.training.datasets.trials import read_trials
from service.training.sources import SpeakerSource

CONDITION_COLUMNS = ("path", "noise_file", "noise_offset", "snr_db", "eq_a")
TRAIN_LIST = "train_list.txt"
NOISY = "noise15db"  # suffix of a trial list's name under the noisy condition


def read_speakers(root: Path, source: SpeakerSource) -> Dataset:
    """Speakers held out of the training list make the selection part; their targets follow the others'.

    Raises:
        BadDataset: a list is missing or malformed, or has too few speakers.
    """
    rows = read_lines(root / TRAIN_LIST, 2, "speaker path")
    held_out = last_groups((speaker for speaker, _ in rows), source.selection_speakers)
    ordered = sorted({speaker for speaker, _ in rows}, key=lambda speaker: (speaker in held_out, speaker))
    targets = {speaker: target for target, speaker in enumerate(ordered)}
    clips = [Clip(root / "wav" / path, targets[speaker], speaker) for speaker, path in rows]
    return Dataset(
        root,
        labels=tuple(ordered),
        train=tuple(clip for clip in clips if clip.group not in held_out),
        selection=tuple(clip for clip in clips if clip.group in held_out),
        report=lambda: Report(trials=_trial_lists(root, source)),
        reserved=_reserved(root, source),
        verification=True,
    )


def _reserved(root: Path, source: SpeakerSource) -> frozenset[str]:
    """Noise files of the report's condition, by name: training must not hear them."""
    if source.condition is None:
        return frozenset()
    return frozenset(row["noise_file"] for row in read_table(root / source.condition, CONDITION_COLUMNS))


def _trial_lists(root: Path, source: SpeakerSource) -> tuple[TrialList, ...]:
    lists = [read_trials(name, root / file, lambda path: root / "wav" / path) for name, file in source.trials.items()]
    if source.condition is None:
        return tuple(lists)
    distortions = _distortions(root, source, root / source.condition)
    noisy = []
    for plain in lists:
        lacking = [path for path in plain.paths if path not in distortions]
        if lacking:
            raise BadDataset(f"{root / source.condition} has no row for {lacking[0]} ({len(lacking)} such clips)")
        name = NOISY if plain.name == "clean" else f"{plain.name}_{NOISY}"
        noisy.append(TrialList(name, plain.trials, distortions))
    return (*lists, *noisy)


def _distortions(root: Path, source: SpeakerSource, path: Path) -> dict[Path, Distortion]:
    noises = root / source.condition_noise
    try:
        return {
            root / "wav" / row["path"]: Distortion(
                noises / row["noise_file"], int(row["noise_offset"]), float(row["snr_db"]), float(row["eq_a"])
            )
            for row in read_table(path, CONDITION_COLUMNS)
        }
    except ValueError as error:
        if isinstance(error, BadDataset):
            raise
        raise BadDataset(f"{path}: {error}") from None
