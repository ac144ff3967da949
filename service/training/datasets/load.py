"""A data set as training sees it: clips with the labels that the `[data]` table names, in their parts. No audio."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from service.timeline.parameters import BACKGROUND
from service.training.datasets.dataset import BadDataset, Clip, Dataset, Report, matching
from service.training.datasets.rows import Row, names, rows_of
from service.training.datasets.split import listed, split
from service.training.datasets.trials import read_trials, reserved_noises
from service.training.sources import Source, Table

logger = logging.getLogger(__name__)


def load_dataset(root: Path, source: Source) -> Dataset:
    """Read a data set's lists; its report part stays closed. Raises BadDataset where they are not as `source` says."""
    if not root.is_dir():
        raise BadDataset(f"data folder {root} does not exist")
    parts = split(root, source)
    train, selection, report = (parts.get(part, []) for part in ("train", "selection", "report"))
    for part, rows in (("training", train), ("selection", selection)):
        if not rows:
            raise BadDataset(f"{root}: the {part} part has no clips")
    labels = source.labels or names(train)
    if unknown := sorted(set(labels) - set(names(train))):
        raise BadDataset(f"{root}: no training clip is labelled {', '.join(unknown)}")
    if len(labels) < 2:
        raise BadDataset(f"{root}: training needs two classes or more, got {', '.join(labels)} alone")
    if source.verification:
        if shared := set(labels) & set(names(selection)):
            raise BadDataset(f"{root}: speaker {min(shared)!r} is in train and in selection; they must differ")
        labels += names(selection)
    targets = {label: target for target, label in enumerate(labels)}

    def clips(rows: Iterable[Row]) -> tuple[Clip, ...]:
        kept = (row for row in rows if not source.labels or row.labels[0] in source.labels)
        return tuple(_clip(row, targets, source) for row in kept)

    def read_report() -> Report:
        if source.verification:
            return Report(trials=read_trials(root, source))
        named = [row for table in source.tables if table.part == "report" for row in rows_of(root, source, table)]
        if source.kind == "folders" or not named:
            file = source.lists.get("report")
            named = report if file is None else listed(root / file, [*report, *parts.get("rest", [])])
        if not named:
            raise BadDataset(f"{root}: the report part has no clips; train without it by --no-report")
        others = matching(root, source.others)
        if source.others and not others:
            raise BadDataset(f"{root}: data.others {', '.join(source.others)}: no such files")
        return Report(clips=clips(named), others=others)

    return Dataset(
        root,
        labels,
        clips(train),
        clips(selection),
        read_report,
        grouped_by=source.group,
        reserved=reserved_noises(root, source),
        verification=source.verification,
        multi_label=source.separator is not None,
    )


def _clip(row: Row, targets: Mapping[str, int], source: Source) -> Clip:
    try:
        target, *also = (targets[label] for label in row.labels)
    except KeyError as error:
        raise BadDataset(f"{row.span.path}: label {error} is not one of the training split's") from None
    return Clip(row.span, target, (row.labels[0] if source.verification else row.group) or None, tuple(also))


def check_classes(dataset: Dataset, train: tuple[Clip, ...], selection: tuple[Clip, ...]) -> None:
    """What is left when unreadable clips have gone must still teach and judge every class. Raises BadDataset."""
    counts = Counter(target for clip in train for target in clip.targets)
    wanted = {clip.target for clip in dataset.train} if dataset.verification else set(range(len(dataset.labels)))
    missing = (dataset.labels[target] for target in sorted(wanted) if not counts[target])
    empty = [label for label in missing if label != BACKGROUND]
    if empty:
        raise BadDataset(f"{dataset.root}: no readable training clip of {', '.join(empty)}")
    if len(counts) < 2:
        raise BadDataset(f"{dataset.root}: training needs two classes or more, got {len(counts)}")
    judged = Counter(clip.target for clip in selection)
    if unjudged := [
        dataset.labels[target] for target in sorted({clip.target for clip in dataset.selection} - {*judged})
    ]:
        logger.warning("no readable clip of %s is left in the selection part", ", ".join(unjudged))
    if not judged or (dataset.verification and (len(judged) < 2 or max(judged.values()) < 2)):
        raise BadDataset(f"{dataset.root}: too few readable clips in the selection part ({judged.total()})")


def guess_source(root: Path) -> Source:
    """The source that a folder looks like, for evaluating a bundle that does not say."""
    return Source(kind="csv" if (root / Table().path).exists() else "folders")
