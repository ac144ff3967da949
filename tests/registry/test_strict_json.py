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
        (b"[]", "no JSON object"),
        (b"7", "no JSON object"),
        (b'"text"', "no JSON object"),
        (b"null", "no JSON object"),
        (b"true", "no JSON object"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b'{"a": "\xff"}', "unicode"),
        ('{"a": 1}'.encode("utf-16"), "not valid JSON"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b'{"a": NaN}', "not valid JSON"),
        (b'{"a": -Infinity}', "invalid number"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": 1, "a": 2}', "key 'a' twice"),
        (b'{"a": {"b": 1, "b": 1}}', "twice"),
        (b'{"a": "\\ud800"}', "hex escape"),
        (b'{"\\udfff": 1}', "surrogate"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a": ' + b"[" * 250 + b"]" * 250 + b"}", "recursion limit"),
        (b'{"a": ' * 100_000, "recursion limit"),
        (b'{"a": ' + b"[" * 400_000, "recursion limit"),
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
