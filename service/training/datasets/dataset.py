"""What every data set looks like to training: clips with targets, and a report part that is read once, at the end."""

import csv
import hashlib
import io
import json
import os.path
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.timeline.parameters import BACKGROUND

SUFFIXES = frozenset({".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".webm", ".au"})


class BadDataset(ValueError):
    """A data set that cannot be used; the message names the file and what would be right."""


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A recording, or a stretch of one: seconds from its beginning; without an end all that follows."""

    path: Path
    start: float = 0.0
    end: float | None = None


@dataclass(frozen=True, slots=True)
class Clip:
    """One labelled recording.

    Args:
        group: whoever must not stand on both sides of a split: the speaker, the session; None where nothing tells.
    """

    span: Span
    target: int  # index into the data set's labels
    group: str | None
    also: tuple[int, ...] = ()  # further labels of the clip, where a data set has several

    @property
    def targets(self) -> tuple[int, ...]:
        """Every label of the clip."""
        return (self.target, *self.also)


@dataclass(frozen=True, slots=True)
class Distortion:
    """One clip's fixed noise: rolled, tiled to the clip, added at a ratio, then `y[t] = x[t] + a x[t-1]`."""

    noise: Span
    offset: int
    snr_db: float
    eq_a: float


@dataclass(frozen=True, slots=True)
class Trial:
    same: bool  # one speaker?
    left: Span
    right: Span


@dataclass(frozen=True, slots=True)
class TrialList:
    """Verification trials under one condition."""

    name: str
    trials: tuple[Trial, ...]
    distortions: dict[Span, Distortion] = field(default_factory=dict)

    @property
    def spans(self) -> tuple[Span, ...]:
        """Every clip of the trials, once."""
        return tuple(dict.fromkeys(span for trial in self.trials for span in (trial.left, trial.right)))


@dataclass(frozen=True, slots=True)
class Report:
    """The part on which figures are reported: clips for classification, trial lists for verification."""

    clips: tuple[Clip, ...] = ()
    trials: tuple[TrialList, ...] = ()
    others: tuple[Span, ...] = ()  # clips that are none of the labels

    @property
    def spans(self) -> list[Span]:
        """Every clip, as often as it stands there."""
        own = [clip.span for clip in self.clips] + [span for trials in self.trials for span in trials.spans]
        return [*own, *self.others]


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set split for training.

    Args:
        labels: classes, or training speakers for verification, and behind them those of the selection part.
    """

    root: Path
    labels: tuple[str, ...]
    train: tuple[Clip, ...]
    selection: tuple[Clip, ...]  # clips held out of the training split, for choosing epochs and calibrating
    report: Callable[[], Report]  # reads the report part's lists; nothing of that part is opened before
    grouped_by: str  # what `Clip.group` is: the column's name
    reserved: frozenset[str] = frozenset()  # file names of noises that belong to the report part's condition
    verification: bool = False  # whether its classes are speakers
    multi_label: bool = False  # whether a clip can have several labels, each of which is true or not by itself

    def with_background(self) -> "Dataset":
        """The same with a label for noise alone, the last one unless it has it already."""
        return self if BACKGROUND in self.labels else replace(self, labels=(*self.labels, BACKGROUND))

    def place(self, span: Span) -> tuple[str, float, float | None]:
        """A clip, wherever the data folder lies."""
        return os.path.relpath(span.path, self.root), span.start, span.end

    def digest(self, more: Iterable[Span]) -> str:
        """Of labels and clips, however those are split; `more` are clips that are not, or not yet, in a part."""
        spans = {*more, *(clip.span for clip in self.train + self.selection)}
        told = [self.labels, sorted(str(self.place(span)) for span in spans)]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def multi_hot(clips: Sequence[Clip], classes: int) -> NDArray[np.bool_]:
    """Which labels are true of which clip: `[N, classes]`."""
    hot = np.zeros((len(clips), classes), dtype=np.bool_)
    for row, clip in enumerate(clips):
        hot[row, list(clip.targets)] = True
    return hot


def audio_files(folder: Path) -> list[Path]:
    """Audio files of a folder and those below, by name."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def matching(root: Path, patterns: Iterable[str]) -> tuple[Span, ...]:
    """Files under a folder, or beside it, that any pattern matches, in order."""
    found: list[Path] = []
    for pattern in patterns:
        anchor = Path(pattern).anchor  # of an absolute one, which a glob refuses
        found += sorted((root / anchor).glob(pattern.removeprefix(anchor)))
    return tuple(Span(path) for path in found if path.is_file())


def read_table(path: Path, columns: Iterable[str], filled: Iterable[str] | None = None) -> list[dict[str, str]]:
    """Rows of a CSV file (or with tabs, `.tsv`) that has at least `columns`, and something in each of `filled`.

    Args:
        filled: all of `columns` where not given.

    Raises:
        BadDataset: it cannot be read, or has other columns.
    """
    columns = tuple(columns)
    filled = columns if filled is None else tuple(filled)
    try:
        reader = csv.DictReader(io.StringIO(_read(path), newline=""), delimiter="\t" if path.suffix == ".tsv" else ",")
        rows, found = list(reader), reader.fieldnames or ()
    except csv.Error as error:
        raise BadDataset(f"{path} is not a CSV file: {error}") from None
    if missing := [column for column in columns if column not in found]:
        wanted, has = ", ".join(columns), " | ".join(found)
        raise BadDataset(f"{path}: expected the columns {wanted}; lacks {', '.join(missing)}, has {has!r}")
    for number, row in enumerate(rows, start=2):
        if any(not row[column] for column in filled):
            raise BadDataset(f"{path}, line {number}: expected {', '.join(filled)}, got {row}")
    if not rows:
        raise BadDataset(f"{path} has no rows")
    return rows


def read_lines(path: Path, fields: int, form: str) -> list[list[str]]:
    """Non-empty lines of a text file, each split at spaces into `fields` parts. Raises BadDataset."""
    rows = []
    for number, line in enumerate(_read(path).split("\n"), start=1):
        parts = line.split()
        if parts and len(parts) != fields:
            raise BadDataset(f"{path}, line {number}: expected {form!r}, got {line[:80]!r}")
        if parts:
            rows.append(parts)
    if not rows:
        raise BadDataset(f"{path} has no lines")
    return rows


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise BadDataset(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadDataset(f"{path} is not text: {error}") from None
