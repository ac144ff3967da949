"""Lists of verification trials (`label path1 path2`, 1 where one speaker is heard twice) and their noisy condition."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.training.datasets.dataset import (
    BadDataset,
    Clip,
    Distortion,
    Span,
    Trial,
    TrialList,
    read_lines,
    read_table,
)
from service.training.sources import Source

FOLDERS = (".", "wav", "dev/wav", "test/wav")  # that the paths of a list may be seen from
CONDITION = ("path", "noise_file", "noise_offset", "snr_db", "eq_a")


def read_trials(root: Path, source: Source) -> tuple[TrialList, ...]:
    """Every list of a source, and each once more under its fixed noisy condition. Raises BadDataset."""
    lists = [read_list(root, name, root / file) for name, file in source.trials.items()]
    if source.condition is None:
        return tuple(lists)
    table, suffix = root / source.condition, Path(source.condition).stem
    distortions = _distortions(root, table, root / source.condition_noise)
    noisy = []
    for plain in lists:
        lacking = [span.path for span in plain.spans if span not in distortions]
        if lacking:
            raise BadDataset(f"{table} has no row for {lacking[0]} ({len(lacking)} such clips)")
        name = suffix if plain.name == "clean" else f"{plain.name}_{suffix}"
        noisy.append(TrialList(name, plain.trials, distortions))
    return (*lists, *noisy)


def reserved_noises(root: Path, source: Source) -> frozenset[str]:
    """Noise files of the report's condition, by name: training must not hear them. Raises BadDataset."""
    if source.condition is None:
        return frozenset()
    return frozenset(row["noise_file"] for row in read_table(root / source.condition, CONDITION))


def read_list(root: Path, name: str, path: Path) -> TrialList:
    """One list, whose paths are seen from `root`. Raises BadDataset."""
    trials = []
    for label, left, right in read_lines(path, 3, "label path1 path2"):
        if label not in ("0", "1"):
            raise BadDataset(f"{path}: the label of a trial is 0 or 1, got {label!r}")
        trials.append(Trial(label == "1", place(root, left), place(root, right)))
    return TrialList(name, tuple(trials))


def place(root: Path, name: str) -> Span:
    """The clip of a path that is seen from `root`, or from one of its `FOLDERS`."""
    return Span(next((path for folder in FOLDERS if (path := root / folder / name).exists()), root / name))


def _distortions(root: Path, table: Path, noises: Path) -> dict[Span, Distortion]:
    def read(row: dict[str, str]) -> Distortion:
        try:
            values = int(row["noise_offset"]), float(row["snr_db"]), float(row["eq_a"])
        except ValueError as error:
            raise BadDataset(f"{table}: {error}") from None
        return Distortion(Span(noises / row["noise_file"]), *values)

    return {place(root, row["path"]): read(row) for row in read_table(table, CONDITION)}


def selection_trials(clips: tuple[Clip, ...], name: str = "selection") -> TrialList:
    """Every pair of the selection part's clips."""
    trials = tuple(
        Trial(left.target == right.target, left.span, right.span)
        for index, left in enumerate(clips)
        for right in clips[index + 1 :]
    )
    return TrialList(name, trials)


def speakers_of(trials: Sequence[Trial]) -> NDArray[np.int64]:
    """Numbers from 0 of the speakers on both sides of each trial: `[N, 2]`.

    Lists name no speakers. Clips that a target trial joins are of one speaker, directly or through others; a clip in
    no target trial counts as a speaker of its own.
    """
    above: dict[Span, Span] = {}

    def root(span: Span) -> Span:
        while (parent := above.setdefault(span, span)) != span:
            above[span] = above[parent]  # halves the way for the next one
            span = parent
        return span

    for trial in trials:
        if trial.same:
            above[root(trial.left)] = root(trial.right)
    numbers: dict[Span, int] = {}
    pairs = [[numbers.setdefault(root(span), len(numbers)) for span in (t.left, t.right)] for t in trials]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)
