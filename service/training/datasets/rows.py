"""Reads what a data set's tables or folders say of each clip, as the `[data]` table tells. No audio."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter

from service.training.datasets.dataset import SUFFIXES, BadDataset, Span, read_table
from service.training.sources import FOLDERS, Part, Source, Table

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Row:
    """What is said of one clip; `file` as seen from the data folder, `group` and `split` empty where nothing tells."""

    span: Span
    file: str
    labels: tuple[str, ...]
    group: str
    split: str

    @property
    def whose(self) -> str:
        """What no split may tear: the group where it is known, else the file."""
        return self.group or self.file


def read_rows(root: Path, source: Source) -> list[tuple[Part | None, list[Row]]]:
    """Rows of each table, or of all files, with the part that they are all of; a table of the report stays closed."""
    if source.kind == "folders":
        return [(None, _of_files(root, source))]
    return [(table.part, rows_of(root, source, table)) for table in source.tables if table.part != "report"]


def rows_of(root: Path, source: Source, table: Table) -> list[Row]:
    """Rows of one table. Raises BadDataset."""
    path, pattern = root / table.path, re.compile(source.pattern or "")
    wanted = source.named() if table.part is None else source.named() - {source.split}
    columns = [name for _, name, _, _ in Formatter().parse(table.file) if name]
    columns += [name for name in (source.label, *sorted(wanted)) if name not in pattern.groupindex]
    rows = []
    for number, row in enumerate(read_table(path, columns, filled={*columns} - source.named()), start=2):
        file = table.file.format_map(row)
        match = pattern.search(file)
        if match is None:
            raise BadDataset(f"{path}, line {number}: {file!r} does not match pattern {source.pattern!r}")
        rows.append(_row(root, source, file, row | match.groupdict(""), f"{path}, line {number}"))
    return rows


def _of_files(root: Path, source: Source) -> list[Row]:
    """Audio files that the pattern matches. What else it matches is warned of, and whole classes of that refused."""
    pattern = re.compile(source.pattern or FOLDERS)
    rows, ignored = [], []
    for path in sorted(root.rglob("*")):
        empty = path.is_dir() and not any(path.iterdir())
        file = path.relative_to(root).as_posix() + ("/-" if empty else "")
        match = pattern.fullmatch(file)
        if match is None or (path.is_dir() and not empty) or path.name.startswith("."):
            continue
        if path.suffix.lower() in SUFFIXES and not empty:
            rows.append(_row(root, source, file, match.groupdict(""), file))
        else:
            ignored.append((match[source.label], path))
    if not rows:
        expected = "a folder per class" if source.pattern is None else f"audio files as {source.pattern!r}"
        raise BadDataset(f"{root}: expected {expected}")
    known, read = {label for row in rows for label in row.labels}, ", ".join(sorted(SUFFIXES))
    for label, path in ignored:
        if label not in known and source.separator is None:
            raise BadDataset(f"{root}: {label!r} has no audio, only such as {path.name}; read are {read}")
    if ignored:
        logger.warning("%d files are no audio that is read (%s), such as %s", len(ignored), read, ignored[0][1])
    return rows


def _row(root: Path, source: Source, file: str, values: Mapping[str, str], where: str) -> Row:
    told = {name: (value or "").strip() for name, value in values.items() if isinstance(name, str)}
    labels = told[source.label].split(source.separator) if source.separator else [told[source.label]]
    start, end = told.get(source.start), told.get(source.end)
    try:
        span = Span(root / file, float(start or 0.0), float(end) if end else None)
    except ValueError as error:
        raise BadDataset(f"{where}: {source.start} and {source.end} are seconds; {error}") from None
    if not 0 <= span.start < (float("inf") if span.end is None else span.end):
        raise BadDataset(f"{where}: a clip from {span.start:g} to {span.end} s is none")
    stripped = tuple(dict.fromkeys(label.strip() for label in labels))
    return Row(span, file, stripped, told.get(source.group, ""), told.get(source.split, ""))


def names(rows: Iterable[Row]) -> tuple[str, ...]:
    """Every label of rows, by name."""
    return tuple(sorted({label for row in rows for label in row.labels}))


def grouping(source: Source, rows: Sequence[Row]) -> str:
    """What rows are held apart by, in a word."""
    return source.group if source.verification or any(row.group for row in rows) else "file"
