"""Lists of verification trials: `label path1 path2`, 1 where one speaker is heard twice. Opens no audio."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.training.datasets.dataset import BadDataset, Clip, Trial, TrialList, read_lines


def read_trials(name: str, path: Path, place: Callable[[str], Path]) -> TrialList:
    """A trial list; `place` finds the clip of a path in it. Raises BadDataset."""
    trials = []
    for label, left, right in read_lines(path, 3, "label path1 path2"):
        if label not in ("0", "1"):
            raise BadDataset(f"{path}: the label of a trial is 0 or 1, got {label!r}")
        trials.append(Trial(label == "1", place(left), place(right)))
    return TrialList(name, tuple(trials))


def selection_trials(clips: tuple[Clip, ...], name: str = "selection") -> TrialList:
    """Every pair of the selection part's clips."""
    trials = tuple(
        Trial(left.target == right.target, left.path, right.path)
        for index, left in enumerate(clips)
        for right in clips[index + 1 :]
    )
    return TrialList(name, trials)


def speakers_of(trials: Sequence[Trial]) -> NDArray[np.int64]:
    """Numbers from 0 of the speakers on both sides of each trial: `[N, 2]`.

    Lists name no speakers. Clips that a target trial joins are of one speaker, directly or through others; a clip in
    no target trial counts as a speaker of its own.
    """
    above: dict[Path, Path] = {}

    def root(path: Path) -> Path:
        while (parent := above.setdefault(path, path)) != path:
            above[path] = above[parent]  # halves the way for the next one
            path = parent
        return path

    for trial in trials:
        if trial.same:
            above[root(trial.left)] = root(trial.right)
    numbers: dict[Path, int] = {}
    pairs = [[numbers.setdefault(root(path), len(numbers)) for path in (t.left, t.right)] for t in trials]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)
