"""What is long in JSON is set aside and read to the same values; what is left is short."""

import base64
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from service.api.long_json import MAX_NESTED, MAX_PARSED_BYTES, MIN_RUN, Document, set_aside
from service.errors import InvalidRequest

LEAST = 8
PLAIN = st.characters(exclude_characters="\0", codec="utf-8")
TEXTS = st.one_of(st.text(PLAIN, max_size=20), st.text('ab\\"[1,2]/=', max_size=40))
ROWS = st.lists(st.integers(-99, 99) | st.floats(-9, 9), max_size=8)
DOCUMENTS = st.dictionaries(st.text(PLAIN, max_size=9), st.one_of(TEXTS, ROWS, st.lists(ROWS, max_size=3)), max_size=6)


def restored(document: Document, value: object) -> object:
    """The parsed text with each mark replaced by what it stands for."""
    if document.is_run(value):
        start, end = document.runs[int(str(value)[1:])]
        if document.body[start - 1 : start] == b"[":
            return document.numbers(str(value), "row").tolist()
        return json.loads(document.body[start - 1 : end + 1])
    if isinstance(value, dict):
        return {str(restored(document, name)): restored(document, inside) for name, inside in value.items()}
    return [restored(document, inside) for inside in value] if isinstance(value, list) else value


def single(value: object) -> object:
    """Numbers as float32, as rows are read."""
    if isinstance(value, dict):
        return {name: single(inside) for name, inside in value.items()}
    if isinstance(value, list):
        return [single(inside) for inside in value]
    return float(np.float32(value)) if isinstance(value, float) else value


@given(DOCUMENTS, st.sampled_from([None, 1]))
def test_nothing_is_lost(given_document: dict[str, object], indent: int | None) -> None:
    document = set_aside(json.dumps(given_document, indent=indent).encode(), LEAST)
    assert len(document.text) < MAX_PARSED_BYTES
    assert single(restored(document, json.loads(document.text))) == single(given_document)


@given(st.binary(min_size=MIN_RUN, max_size=MIN_RUN + 9), st.booleans())
def test_base64_is_unpacked_with_escaped_slashes_too(content: bytes, escaped: bool) -> None:
    text = json.dumps(base64.b64encode(content).decode())
    document = set_aside((text.replace("/", "\\/") if escaped else text).encode())
    assert document.unpack("\x000", "body") == content


@pytest.mark.parametrize("text", ["A" * 2001, "A===" * 600, "AA==" * 600, "A?AA" * 600, "é" * 1200])
def test_what_is_no_base64(text: str) -> None:
    with pytest.raises(InvalidRequest, match="body must be"):
        set_aside(json.dumps(text, ensure_ascii=False).encode()).unpack("\x000", "body")


@pytest.mark.parametrize("row", ["1,,2", "1,", ",1", "1 2", "--1", "1e", "01", "1" * 10_000, " " * 2000])
def test_what_is_no_row(row: str) -> None:
    document = set_aside(f"[{row},{','.join(['1'] * 1000)}]".encode() if row.strip() else f"[{row}]".encode())
    with pytest.raises(InvalidRequest):
        document.numbers("\x000", "row")


@pytest.mark.parametrize("value", ["\x001", "\0x", "\0" + "9" * 12, "\0²", "\0"])
def test_a_mark_that_stands_for_nothing(value: str) -> None:
    document = set_aside(json.dumps(["A" * 2000]).encode())
    with pytest.raises(InvalidRequest):
        document.unpack(value, "body")
    with pytest.raises(InvalidRequest):  # a string, where a row is wanted
        document.numbers("\x000", "body")


@pytest.mark.parametrize(
    "body", [b"[" * (MAX_NESTED + 1), b'"' * 30_000, b"null," * MAX_PARSED_BYTES], ids=["nested", "strings", "values"]
)
def test_what_is_left_is_bounded(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        set_aside(body)


class Row(BaseModel):
    data: str


@pytest.mark.parametrize("piece", [b"0,", b"0.123456,"])
def test_no_more_memory_than_it_says(piece: bytes) -> None:
    body = b'{"data":[' + piece * (4_000_000 // len(piece)) + b"0]}"
    tracemalloc.start()
    try:
        document = set_aside(body)
        values = document.numbers(document.parse(Row).data, "data")
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(values) == 4_000_000 // len(piece) + 1
    assert taken < document.parsed_bytes + 8 * 2**20
