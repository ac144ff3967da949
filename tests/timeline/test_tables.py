import csv
import io
import json

import pytest

from service.timeline.tables import FORMS, Row, Table
from service.timeline.timeline import Event

ROWS = [
    Row("a,b.wav", "events", 3, Event("dog", 0.5, 2.0, 0.666_666_67)),
    Row("c\td.wav", "events", 3, Event("sea waves", 3600.0, 3601.25, 0.5)),
]


def written(form: str, rows: list[Row]) -> str:
    table = Table(form)
    return table.head + "".join(table.line(row) for row in rows) + table.tail


def test_csv_has_the_columns_of_the_contract() -> None:
    text = written("csv", ROWS)
    assert text.startswith("file,adapter,version,label,start,end,score\n")
    assert list(csv.reader(io.StringIO(text)))[1:] == [
        ["a,b.wav", "events", "3", "dog", "0.5", "2.0", "0.666667"],
        ["c\td.wav", "events", "3", "sea waves", "3600.0", "3601.25", "0.5"],
    ]


def test_audacity_labels() -> None:
    assert written("audacity", ROWS) == "0.500000\t2.000000\tdog\n3600.000000\t3601.250000\tsea waves\n"


def test_raven_selections() -> None:
    lines = written("raven", ROWS).splitlines()
    assert lines[0].split("\t")[:5] == ["Selection", "View", "Channel", "Begin Time (s)", "End Time (s)"]
    found = [dict(zip(lines[0].split("\t"), line.split("\t"), strict=True)) for line in lines[1:]]
    assert [row["Selection"] for row in found] == ["1", "2"]
    assert (found[1]["Begin Time (s)"], found[1]["End Time (s)"]) == ("3600.000000", "3601.250000")
    assert (found[1]["Begin File"], found[1]["Label"], found[0]["Score"]) == ("c d.wav", "sea waves", "0.666667")


def test_json() -> None:
    assert json.loads(written("json", ROWS))["events"][1] == {
        "file": "c\td.wav",
        "adapter": "events",
        "version": 3,
        "label": "sea waves",
        "start": 3600.0,
        "end": 3601.25,
        "score": 0.5,
    }


@pytest.mark.parametrize("form", FORMS)
def test_a_table_without_rows(form: str) -> None:
    assert len(written(form, []).splitlines()) == (0 if form == "audacity" else 1)
