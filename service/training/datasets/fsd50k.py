"""FSD50K (Fonseca et al. 2022): clips with several labels each, from two tables. Opens no audio."""

from collections.abc import Iterable
from pathlib import Path

from service.training.datasets.dataset import Clip, Dataset, Report, read_table, target_of
from service.training.sources import Fsd50kSource

DEV = Path("FSD50K.ground_truth") / "dev.csv"
EVAL = Path("FSD50K.ground_truth") / "eval.csv"
DEV_AUDIO, EVAL_AUDIO = "FSD50K.dev_audio", "FSD50K.eval_audio"
COLUMNS = ("fname", "labels")
SEPARATOR = ","


def read_fsd50k(root: Path, source: Fsd50kSource) -> Dataset:
    """Development clips by the table's split; `val` makes the selection part. Raises BadDataset."""
    rows = read_table(root / DEV, (*COLUMNS, "split"))
    labels = tuple(sorted({label for row in rows if row["split"] == "train" for label in _labels(row)}))

    def clips(table: Path, folder: str, rows: Iterable[dict[str, str]]) -> tuple[Clip, ...]:
        made = []
        for row in rows:
            target, *also = (target_of(label, labels, root / table) for label in _labels(row))
            made.append(Clip(root / folder / f"{row['fname']}.wav", target, "", tuple(also)))
        return tuple(made)

    return Dataset(
        root,
        labels,
        train=clips(DEV, DEV_AUDIO, (row for row in rows if row["split"] == "train")),
        selection=clips(DEV, DEV_AUDIO, (row for row in rows if row["split"] == "val")),
        report=lambda: Report(clips=clips(EVAL, EVAL_AUDIO, read_table(root / EVAL, COLUMNS))),
        multi_label=True,
    )


def _labels(row: dict[str, str]) -> list[str]:
    """The labels of a row, each once: the tables name parents of a label again."""
    return list(dict.fromkeys(row["labels"].split(SEPARATOR)))
