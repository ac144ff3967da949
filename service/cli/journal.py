"""What `ipet events` has written, so that a run that was stopped goes on where it was.

A line of JSON for each recording that is done, with its events, appended and flushed to disk once its own table is in
place; a line that was cut off or damaged does not count.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from service.timeline.tables import Row, Table
from service.timeline.timeline import Event

NAME: Final = ".ipet-events.jsonl"
PARQUET: Final = "parquet"
ENDINGS: Final = {"csv": ".csv", "audacity": ".labels.txt", "raven": ".selections.txt", "json": ".json"}
ENDINGS[PARQUET] = ".parquet"

LASTING: Final = ("bad_audio", "audio_too_long", "payload_too_large")  # errors that another try would meet again

Answer = Mapping[str, Any]  # of the service: events, audio, parameters, and error where it broke


class Journal:
    """The recordings that are done in a folder.

    Args:
        asked: what the events were asked with; others do not count.
        fresh: whether nothing of what is done counts.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any], fresh: bool = False) -> None:
        self._path = folder / NAME
        self._asked = dict(asked)
        self._fresh = fresh
        self._done: dict[str, dict[str, Any]] = {}
        self._seen: dict[str, dict[str, Any]] = {}  # as they were before they were sent
        folder.mkdir(parents=True, exist_ok=True)
        content = self._path.read_bytes() if self._path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            write_whole(self._path, whole)
        for line in whole.split(b"\n"):
            with suppress(ValueError, TypeError, KeyError):  # a damaged one
                entry = json.loads(line)
                if "events" in entry["answer"]:
                    self._done[entry["path"]] = entry

    def answer(self, recording: Path) -> Answer | None:
        """What was answered of a recording, if it is the same, was asked for the same and would be answered the same.

        Raises:
            OSError: it cannot be looked up.
        """
        path, status = str(recording.resolve()), recording.stat()
        state = {"path": path, "size": status.st_size, "mtime_ns": status.st_mtime_ns, "asked": self._asked}
        self._seen[path] = state
        entry = self._done.get(path)
        if self._fresh or entry is None or {name: entry.get(name) for name in state} != state:
            return None
        found: Answer = entry["answer"]
        return found if found.get("error", {}).get("code", LASTING[0]) in LASTING else None

    def keep(self, recording: Path, answer: Answer) -> None:
        """Note that a recording is done, as it was when it was looked up. Raises OSError."""
        path = str(recording.resolve())
        entry = {**self._seen[path], "answer": answer}
        if self._done.get(path) == entry:
            return
        self._done[path] = entry
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())


def rows_of(file: str, answer: Answer) -> list[Row]:
    """The rows of one recording's answer."""
    return [
        Row(file, one["adapter"], one["version"], Event(one["label"], one["start"], one["end"], one["score"]))
        for one in answer["events"]
    ]


def table_of(form: str, rows: Sequence[Row]) -> bytes:
    """A whole table in one of the forms of `ENDINGS`. Raises ValueError: Parquet without pyarrow."""
    if form == PARQUET:
        return _parquet(rows)
    table = Table(form)
    return (table.head + "".join(map(table.line, rows)) + table.tail).encode()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def check_form(form: str) -> None:
    """Raise ValueError where this machine cannot write it."""
    if form == PARQUET:
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise ValueError("--format parquet needs pyarrow: pip install pyarrow") from None


def _parquet(rows: Iterable[Row]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"file": pa.string(), "adapter": pa.string(), "version": pa.int64(), "label": pa.string()}
    columns |= dict.fromkeys(("start", "end", "score"), pa.float64())
    told = [{"file": row.file, **row.told()} for row in rows]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(told, schema=pa.schema(columns)), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content
