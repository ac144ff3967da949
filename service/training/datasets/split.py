"""Which clip is of which part: training, selection or report."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from service.training.datasets.dataset import BadDataset, read_lines
from service.training.datasets.rows import Row, grouping, read_rows
from service.training.datasets.trials import read_trials
from service.training.sources import Part, Source

NAMES: Mapping[Part, tuple[str, ...]] = {
    "train": ("train", "training"),
    "selection": ("selection", "val", "valid", "validation", "dev"),
    "report": ("report", "test", "eval"),
}
HELD_OUT = 10  # about one of so many groups goes to each part that nothing else makes,
LEAST = 4  # and never more than one of so many, but one at least


def split(root: Path, source: Source) -> dict[str, list[Row]]:
    """Rows by part; `rest` is what stands on no list that has been opened yet.

    What tells a part, first to last: a table's own `part`; `lists`; the column `split`. A report part that none of
    these makes is a share of the clips, of verification its trials. The selection part is then held out of training:
    the last groups, as many as `held_out` says, or a share again.
    """
    parts: dict[str, list[Row]] = {}
    for part, found in read_rows(root, source):
        parts.setdefault(part or "", []).extend(found)
    rows = parts.pop("", [])
    told = _by_lists(root, source, rows) if source.lists else _by_column(root, source, rows)
    for name, found in told.items():
        parts.setdefault(name, []).extend(found)
    if not parts.get("selection") and parts.get("train"):
        parts["train"], parts["selection"] = _hold_out(root, source, parts["train"])
    return parts


def _by_lists(root: Path, source: Source, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The report's list is opened here only where training clips are those on no list."""
    opened: dict[str, list[Row]] = {
        part: listed(root / file, rows) for part, file in source.lists.items() if part != "report"
    }
    taken = {row.span for found in opened.values() for row in found}
    rest = [row for row in rows if row.span not in taken]
    if "train" in opened:
        return {**opened, "rest": rest}
    held_out = {row.span for row in listed(root / source.lists["report"], rest)} if "report" in source.lists else set()
    return {
        **opened,
        "train": [row for row in rest if row.span not in held_out],
        "report": [row for row in rest if row.span in held_out],
    }


def listed(path: Path, rows: Sequence[Row]) -> list[Row]:
    """The rows that a list names, each by the last parts of its path, whatever the suffix. Raises BadDataset."""
    wanted = {str(Path(name).with_suffix("")) for (name,) in read_lines(path, 1, "file")}
    depth = max(len(Path(name).parts) for name in wanted)
    found = [row for row in rows if any(tail in wanted for tail in _tails(row.span.path.with_suffix(""), depth))]
    if not found:
        raise BadDataset(f"{path}: none of the {len(wanted)} names, such as {min(wanted)}, is that of a clip")
    return found


def _tails(path: Path, depth: int) -> list[str]:
    return ["/".join(path.parts[-count:]) for count in range(1, depth + 1)]


def _by_column(root: Path, source: Source, rows: list[Row]) -> dict[str, list[Row]]:
    part_of = {value: part for part, values in (source.parts or NAMES).items() for value in values}
    there = sorted({row.split for row in rows if row.split})
    if lacking := sorted({value for values in source.parts.values() for value in values}.difference(there)):
        raise BadDataset(f"{root}: no clip has {source.split} {lacking[0]}; there are {', '.join(there)}")
    loose = [row for row in rows if not row.split]
    if loose and there:
        raise BadDataset(f"{root}: {len(loose)} clips have no {source.split}, such as {loose[0].span.path.name}")
    if loose and (source.verification or any(table.part == "report" for table in source.tables)):
        return {"train": loose}
    if loose:
        train, report = _share(root, source, loose, ("selection", "report"))
        return {"train": train, "report": report}
    parts: dict[str, list[Row]] = {}
    for row in rows:
        if row.split in part_of:
            parts.setdefault(part_of[row.split], []).append(row)
        elif not source.parts:
            known = ", ".join(part_of)
            raise BadDataset(f"{row.span.path}: {source.split} is one of {known}, got {row.split!r}")
    return parts


def _hold_out(root: Path, source: Source, rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Training and selection rows."""
    if source.verification and source.kind == "folders":  # those of the trials lie there too
        heard = {span.path for trials in read_trials(root, source) for span in trials.spans}
        heard_speakers = {row.labels[0] for row in rows if row.span.path in heard}
        rows = [row for row in rows if row.labels[0] not in heard_speakers]
    if source.held_out is None and not source.verification:
        return _share(root, source, rows, ("selection",))

    def group(row: Row) -> str:
        return row.labels[0] if source.verification else row.group

    if unknown := [row.file for row in rows if not group(row)]:
        raise BadDataset(
            f"{root}: data.held_out counts {source.group}s, and nothing tells that of {unknown[0]} "
            f"({len(unknown)} such clips)"
        )
    groups = sorted({group(row) for row in rows})
    count = source.held_out or max(2, len(groups) // HELD_OUT)
    if len(groups) <= count:
        raise BadDataset(f"{root}: {count} {source.group}s cannot be held out of {len(groups)}")
    last = {name: [row for row in rows if group(row) == name] for name in groups[-count:]}
    few = source.selection_clips or len(rows)
    judged = {  # of each group evenly spread, so that many sessions are heard
        row.span
        for found in last.values()
        for row in (found if len(found) <= few else [found[len(found) * index // few] for index in range(few)])
    }
    return [row for row in rows if group(row) not in last], [row for row in rows if row.span in judged]


def _share(root: Path, source: Source, rows: Sequence[Row], parts: tuple[Part, ...]) -> tuple[list[Row], list[Row]]:
    """The rows that stay, and those of the last of `parts`: of groups where they are known, else files of every class.

    Files that hold spans of several classes are dealt whatever these are.

    Where a group goes follows from its own name, so that later clips move none from training to another part.
    """
    by = grouping(source, rows)
    buckets: dict[str, list[str]] = {}
    classes = {(row.whose, row.labels[0]) for row in rows}
    by_class = by != source.group and len(classes) == len({whose for whose, _ in classes})  # not spans of recordings
    for whose, row in {row.whose: row for row in reversed(rows)}.items():
        buckets.setdefault(row.labels[0] if by_class else "", []).append(whose)
    taken: set[str] = set()
    for bucket, groups in sorted(buckets.items()):
        if len(groups) <= len(parts):
            where = "folders train/, selection/ and report/" if source.kind == "folders" else f"a column {source.split}"
            raise BadDataset(
                f"{root}: {f'class {bucket!r}' if bucket else 'the data'} has {len(groups)} {by}s, too few for "
                f"training, {' and '.join(parts)}; record more, or say by {where} what belongs where"
            )
        place = {_place(parts[-1], group): group for group in groups}
        count = sum(each < 1 / HELD_OUT for each in place)
        taken |= {place[each] for each in sorted(place)[: max(1, min(count, len(groups) // LEAST))]}
    return [row for row in rows if row.whose not in taken], [row for row in rows if row.whose in taken]


def _place(part: str, group: str) -> float:
    """A number from 0 to 1 that is the group's own."""
    return int.from_bytes(hashlib.sha256(f"{part} {group}".encode()).digest()[:8]) / 2**64
