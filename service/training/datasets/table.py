"""A CSV file of your own: one row a clip, with its label or labels and its split. Opens no audio."""

from pathlib import Path

from service.training.datasets.dataset import BadDataset, Clip, Dataset, Report, read_table, target_of
from service.training.datasets.trials import read_trials
from service.training.sources import TableSource

PART_OF = {
    "train": "train",
    "selection": "selection",
    "val": "selection",
    "validation": "selection",
    "report": "report",
    "test": "report",
}


def read_csv(root: Path, source: TableSource) -> Dataset:
    """Classes, or speakers where the recipe names trials. Raises BadDataset."""
    table = root / source.table
    rows = read_table(table, (source.path, source.label, source.split))
    parts: dict[str, list[dict[str, str]]] = {"train": [], "selection": [], "report": []}
    for number, row in enumerate(rows, start=2):
        part = PART_OF.get(row[source.split])
        if part is None:
            expected = ", ".join(PART_OF)
            raise BadDataset(f"{table}, line {number}: {source.split} is one of {expected}, got {row[source.split]!r}")
        parts[part].append(row)
    labels = _names(parts["train"], source)
    if source.verification:
        shared = set(labels) & set(_names(parts["selection"], source))
        if shared:
            raise BadDataset(f"{table}: speaker {min(shared)!r} is in train and in selection; they must differ")
        labels += _names(parts["selection"], source)

    def clips(part: str) -> tuple[Clip, ...]:
        made = []
        for row in parts[part]:
            target, *also = (target_of(label, labels, table) for label in _labels(row, source))
            made.append(Clip(table.parent / row[source.path], target, row[source.label], tuple(also)))
        return tuple(made)

    def report() -> Report:
        if not source.verification:
            return Report(clips=clips("report"))
        lists = source.trials.items()
        return Report(trials=tuple(read_trials(name, root / file, lambda path: root / path) for name, file in lists))

    return Dataset(
        root,
        labels,
        train=clips("train"),
        selection=clips("selection"),
        report=report,
        verification=source.verification,
        multi_label=source.separator is not None,
    )


def _labels(row: dict[str, str], source: TableSource) -> list[str]:
    if source.separator is None:
        return [row[source.label]]
    return list(dict.fromkeys(label.strip() for label in row[source.label].split(source.separator)))


def _names(rows: list[dict[str, str]], source: TableSource) -> tuple[str, ...]:
    return tuple(sorted({label for row in rows for label in _labels(row, source)}))
