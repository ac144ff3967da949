"""The Free Spoken Digit Dataset with a table of its splits. Opens no audio."""

from pathlib import Path

from service.training.datasets.dataset import Clip, Dataset, Report, read_table, target_of, without_last_groups
from service.training.sources import DigitSource

TABLE = "metadata.csv"
COLUMNS = ("filename", "digit", "speaker", "split")


def read_digits(root: Path, source: DigitSource) -> Dataset:
    """Spoken digits, split by speaker. Raises BadDataset."""
    path = root / TABLE
    rows = read_table(path, COLUMNS)
    labels = tuple(sorted({row["digit"] for row in rows if row["split"] == "train"}))

    def clips(split: str) -> tuple[Clip, ...]:
        return tuple(
            Clip(root / row["filename"], target_of(row["digit"], labels, path), row["speaker"])
            for row in rows
            if row["split"] == split
        )

    train, selection = without_last_groups(root, clips("train"), source.selection_speakers)
    return Dataset(root, labels, train, selection, report=lambda: Report(clips=clips("val")))
