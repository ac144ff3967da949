"""Lists of verification trials: `label path1 path2`, 1 where one speaker is heard twice. Opens no audio."""

from collections.abc import Callable
from pathlib import Path

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
