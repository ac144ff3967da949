"""What every data set looks like to training: clips with targets, and a report part that is read once, at the end.

Knows no layouts on disk and does not open audio.
"""

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class BadDataset(ValueError):
    """A data set that cannot be used; the message names the file and what would be right."""


@dataclass(frozen=True, slots=True)
class Clip:
    """One recording.

    Args:
        target: index into the data set's labels.
        group: whoever must not stand on both sides of a split: the speaker, or the fold.
        also: further labels of the clip, where a data set has several.
    """

    path: Path
    target: int
    group: str
    also: tuple[int, ...] = ()

    @property
    def targets(self) -> tuple[int, ...]:
        """Every label of the clip."""
        return (self.target, *self.also)


@dataclass(frozen=True, slots=True)
class Distortion:
    """One clip's fixed noise: rolled, tiled to the clip, added at a ratio, then `y[t] = x[t] + a x[t-1]`."""

    noise: Path
    offset: int
    snr_db: float
    eq_a: float


@dataclass(frozen=True, slots=True)
class Trial:
    same: bool  # one speaker?
    left: Path
    right: Path


@dataclass(frozen=True, slots=True)
class TrialList:
    """Verification trials under one condition."""

    name: str
    trials: tuple[Trial, ...]
    distortions: dict[Path, Distortion] = field(default_factory=dict)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every clip of the trials, once."""
        return tuple(dict.fromkeys(path for trial in self.trials for path in (trial.left, trial.right)))


@dataclass(frozen=True, slots=True)
class Report:
    """The part on which figures are reported: clips for classification, trial lists for verification."""

    clips: tuple[Clip, ...] = ()
    trials: tuple[TrialList, ...] = ()


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set split for training.

    Args:
        labels: classes, or training speakers for verification.
        train: clips to learn from.
        selection: clips held out of the training split, for choosing epochs and calibrating. Their targets
            index `labels` for classification, and are distinct from the training speakers' for verification.
        report: reads the report part's lists; nothing of that part is opened before.
        verification: whether its classes are speakers.
        multi_label: whether a clip can have several labels, each of which is true or not by itself.
        reserved: file names of noises that belong to the report part's condition.
    """

    root: Path
    labels: tuple[str, ...]
    train: tuple[Clip, ...]
    selection: tuple[Clip, ...]
    report: Callable[[], Report]
    reserved: frozenset[str] = frozenset()
    verification: bool = False
    multi_label: bool = False


def multi_hot(clips: Sequence[Clip], classes: int) -> NDArray[np.bool_]:
    """Which labels are true of which clip: `[N, classes]`."""
    hot = np.zeros((len(clips), classes), dtype=np.bool_)
    for row, clip in enumerate(clips):
        hot[row, list(clip.targets)] = True
    return hot


def read_table(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Rows of a CSV file that has at least `columns`. Raises BadDataset."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise BadDataset(f"{path}: expected the columns {', '.join(columns)}; lacks {', '.join(missing)}")
            rows = list(reader)
    except OSError as error:
        raise BadDataset(f"{path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadDataset(f"{path} is not a CSV file: {error}") from None
    for number, row in enumerate(rows, start=2):
        if any(not row[column] for column in columns):
            raise BadDataset(f"{path}, line {number}: expected {', '.join(columns)}, got {row}")
    if not rows:
        raise BadDataset(f"{path} has no rows")
    return rows


def read_lines(path: Path, fields: int, form: str) -> list[list[str]]:
    """Non-empty lines of a text file, each split at spaces into `fields` parts. Raises BadDataset."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadDataset(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadDataset(f"{path} is not text: {error}") from None
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        parts = line.split()
        if parts and len(parts) != fields:
            raise BadDataset(f"{path}, line {number}: expected {form!r}, got {line[:80]!r}")
        if parts:
            rows.append(parts)
    if not rows:
        raise BadDataset(f"{path} has no lines")
    return rows


def read_names(path: Path, form: str) -> list[str]:
    """The lines of a text file that names one clip in each. Raises BadDataset."""
    return [name for (name,) in read_lines(path, 1, form)]


def last_groups(groups: Iterable[str], count: int) -> frozenset[str]:
    """The last `count` of the sorted distinct groups: a split that needs no seed.

    Raises:
        BadDataset: fewer than `count + 1` groups, so that nothing would be left to train on.
    """
    ordered = sorted(set(groups))
    if len(ordered) <= count:
        raise BadDataset(f"{count} speakers cannot be held out of {len(ordered)}")
    return frozenset(ordered[len(ordered) - count :])


def without_last_groups(root: Path, clips: tuple[Clip, ...], count: int) -> tuple[tuple[Clip, ...], tuple[Clip, ...]]:
    """Clips of all groups but the last `count`, and theirs. Raises BadDataset."""
    if not clips:
        raise BadDataset(f"{root} has no clips in its training split")
    held_out = last_groups((clip.group for clip in clips), count)
    return (
        tuple(clip for clip in clips if clip.group not in held_out),
        tuple(clip for clip in clips if clip.group in held_out),
    )


def target_of(label: str, labels: tuple[str, ...], path: Path) -> int:
    """Index of a label that must be known. Raises BadDataset."""
    try:
        return labels.index(label)
    except ValueError:
        raise BadDataset(f"{path}: label {label!r} is not one of the training split's") from None
