"""ESC-50 and ESC-10 (Piczak 2015): five folds of one table. Opens no audio."""

from pathlib import Path

from service.training.datasets.dataset import BadDataset, Clip, Dataset, Report, read_table, target_of
from service.training.sources import EscSource

TABLE = Path("meta") / "esc50.csv"
COLUMNS = ("filename", "fold", "category")


def read_esc(root: Path, source: EscSource) -> Dataset:
    """Clips of one source recording stay in one fold. Raises BadDataset."""
    path = root / TABLE
    rows = read_table(path, COLUMNS)
    folds = sorted({row["fold"] for row in rows})
    for fold in (*source.train_folds, source.report_fold):
        if str(fold) not in folds:
            raise BadDataset(f"{path} has no fold {fold}; it has {', '.join(folds)}")
    train_folds = {str(fold) for fold in source.train_folds}
    labels = tuple(sorted({row["category"] for row in rows if row["fold"] in train_folds}))

    def clips(wanted: set[str]) -> tuple[Clip, ...]:
        return tuple(
            Clip(root / "audio" / row["filename"], target_of(row["category"], labels, path), row["fold"])
            for row in rows
            if row["fold"] in wanted
        )

    selection = {str(source.selection_fold)}
    return Dataset(
        root,
        labels,
        train=clips(train_folds - selection),
        selection=clips(selection),
        report=lambda: Report(clips=clips({str(source.report_fold)})),
    )
