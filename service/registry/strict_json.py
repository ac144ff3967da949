"""Untrusted JSON, parsed within limits. Knows nothing of what the document means."""

import json
import math
import re
from typing import Any, NoReturn

from service.errors import InvalidBundle

MAX_DEPTH = 32  # nested objects and arrays

_SURROGATE = re.compile("[\ud800-\udfff]")


def parse_object(raw: bytes, what: str, max_bytes: int) -> dict[str, Any]:
    """Parse a JSON object, refusing whatever parsers disagree about.

    Args:
        raw: the document, UTF-8.
        what: name of the document in error messages.
        max_bytes: largest document accepted.

    Raises:
        InvalidBundle: not UTF-8, not JSON, not an object, too large, nested too deeply, a key twice,
            NaN or infinite numbers, or half a surrogate pair.
    """
    if len(raw) > max_bytes:
        raise InvalidBundle(f"{what} has {len(raw):,} bytes; at most {max_bytes:,} are accepted")

    def refuse_constant(constant: str) -> NoReturn:
        raise InvalidBundle(f"{what} contains {constant}, which is not JSON; numbers must be finite")

    def finite(digits: str) -> float:
        number = float(digits)
        if not math.isfinite(number):
            raise InvalidBundle(f"{what} contains the number {digits[:40]}, which is too large")
        return number

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if len(mapping) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise InvalidBundle(f"{what} has the key {twice[:80]!a} twice; once is right")
        return mapping

    try:
        parsed = json.loads(
            raw.decode("utf-8"), parse_constant=refuse_constant, parse_float=finite, object_pairs_hook=unique
        )
    except UnicodeDecodeError as error:
        raise InvalidBundle(f"{what} is not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise InvalidBundle(f"{what} is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise InvalidBundle(f"{what} is not valid JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise InvalidBundle(f"{what} is a JSON {_kind(parsed)}; an object is right")
    # Nothing nests without brackets, and half a pair can only have been written as an escape: most need no walk.
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH or b"\\u" in raw:
        _check_tree(parsed, what)
    return parsed


def _check_tree(root: dict[str, Any], what: str) -> None:
    """Depth and strings, without recursion."""
    pending: list[tuple[Any, int]] = [(root, 1)]
    while pending:
        node, depth = pending.pop()
        if isinstance(node, str):
            if _SURROGATE.search(node):
                raise InvalidBundle(f"{what} has half a surrogate pair in the text {node[:40]!a}")
        elif isinstance(node, dict | list):
            if depth > MAX_DEPTH:
                raise InvalidBundle(f"{what} is nested deeper than {MAX_DEPTH} levels")
            if isinstance(node, dict):
                pending.extend((key, depth) for key in node)
            children = node.values() if isinstance(node, dict) else node
            pending.extend((child, depth + 1) for child in children)


def _kind(parsed: object) -> str:
    names = {list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(parsed), "number")
