"""Keyword lists `train.csv` and `val.csv`, as Arabic Speech Commands has them. Opens no audio."""

from pathlib import Path

from service.training.datasets.dataset import Clip, Dataset, Report, read_table, target_of, without_last_groups
from service.training.sources import KeywordSource

COLUMNS = ("file", "class")
TRAIN, REPORT = "train.csv", "val.csv"


def read_keywords(root: Path, source: KeywordSource) -> Dataset:
    """The speaker is what stands before the first underscore of a file name. Raises BadDataset."""
    rows = read_table(root / TRAIN, COLUMNS)
    labels = tuple(sorted({row["class"] for row in rows}))

    def clips(name: str, rows: list[dict[str, str]]) -> tuple[Clip, ...]:
        return tuple(
            Clip(root / row["file"], target_of(row["class"], labels, root / name), _speaker(row["file"]))
            for row in rows
        )

    train, selection = without_last_groups(root, clips(TRAIN, rows), source.selection_speakers)
    return Dataset(
        root,
        labels,
        train,
        selection,
        report=lambda: Report(clips=clips(REPORT, read_table(root / REPORT, COLUMNS))),
    )


def _speaker(file: str) -> str:
    return Path(file).name.split("_", 1)[0]
