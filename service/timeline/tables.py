"""Events as tables, line by line: CSV, labels of Audacity, selections of Raven, JSON."""

import csv
import io
import json
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from service.timeline.timeline import Event

COLUMNS = ("file", "adapter", "version", "label", "start", "end", "score")  # in this order for good
RAVEN_COLUMNS = (
    "Selection",
    "View",
    "Channel",
    "Begin Time (s)",
    "End Time (s)",
    "Low Freq (Hz)",
    "High Freq (Hz)",
    "Begin File",
    "Label",
    "Score",
    "Adapter",
    "Version",
)
HIGHEST_HERTZ = 8000  # what is heard at 16 kHz


@dataclass(frozen=True, slots=True)
class Row:
    """An event of a file, found by a version of an adapter."""

    file: str
    adapter: str
    version: int
    event: Event

    def told(self) -> dict[str, Any]:
        """As JSON, without the file."""
        event = self.event
        named: dict[str, Any] = {"adapter": self.adapter, "version": self.version, "label": event.label}
        return {**named, "start": event.start, "end": event.end, "score": round(event.score, 6)}


class Table:
    """A table that is written as its rows come: `head`, a `line` for each row, `tail`.

    Args:
        form: `csv`, `audacity`, `raven` or `json`.
    """

    def __init__(self, form: str) -> None:
        self._line = _LINES[form]
        self._count = 0
        self.head = _HEADS[form]
        self.tail = "]}\n" if form == "json" else ""

    def line(self, row: Row) -> str:
        """The row's line, its end included."""
        self._count += 1
        return self._line(row, self._count)


def _csv(cells: tuple[object, ...]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue()


def _tabs(cells: tuple[object, ...]) -> str:
    """Tables with tabs have no quotes: what would break a line becomes a space."""
    plain = ("".join(" " if unicodedata.category(c) == "Cc" else c for c in str(cell)) for cell in cells)
    return "\t".join(plain) + "\n"


def _csv_line(row: Row, number: int) -> str:
    told = {"file": row.file, **row.told()}
    return _csv(tuple(told[column] for column in COLUMNS))


def _audacity_line(row: Row, number: int) -> str:
    return _tabs((f"{row.event.start:.6f}", f"{row.event.end:.6f}", row.event.label))


def _raven_line(row: Row, number: int) -> str:
    event = row.event
    place = (number, "Spectrogram 1", 1, f"{event.start:.6f}", f"{event.end:.6f}", 0, HIGHEST_HERTZ)
    return _tabs((*place, row.file, event.label, f"{event.score:.6f}", row.adapter, row.version))


def _json_line(row: Row, number: int) -> str:
    told = json.dumps({"file": row.file, **row.told()}, ensure_ascii=False)
    return f"{',' if number > 1 else ''}\n{told}"


_LINES: dict[str, Callable[[Row, int], str]] = {
    "csv": _csv_line,
    "audacity": _audacity_line,
    "raven": _raven_line,
    "json": _json_line,
}
_HEADS = {"csv": _csv(COLUMNS), "audacity": "", "raven": _tabs(RAVEN_COLUMNS), "json": '{"events": ['}
FORMS = tuple(_LINES)
