from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import InvalidBundle
from service.registry.strict_json import parse_object


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "array"),
        (b"7", "number"),
        (b'"text"', "string"),
        (b"null", "null"),
        (b"true", "boolean"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": 1, "a": 2}', "key 'a' twice"),
        (b'{"a": {"b": 1, "b": 1}}', "twice"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"\\udfff": 1}', "surrogate"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}", "nested deeper"),
        (b'{"a": ' * 100_000, "nested deeper"),
        (b'{"a": ' + b"[" * 400_000, "nested deeper"),
        (b'{"a": "' + b"x" * 2**20 + b'"}', "at most 1,048,576"),
    ],
)
def test_refuses(raw: bytes, reason: str) -> None:
    with pytest.raises(InvalidBundle, match=reason) as caught:
        parse_object(raw, "the document", 2**20)
    assert caught.value.detail.startswith("the document")


def test_parses_what_is_right() -> None:
    assert parse_object('{"ä": [1, 2.5, {"b": null}]}'.encode(), "it", 100) == {"ä": [1, 2.5, {"b": None}]}


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_an_object_or_invalid_bundle(raw: bytes) -> None:
    with suppress(InvalidBundle):
        assert isinstance(parse_object(raw, "it", 100), dict)
