"""Untrusted JSON, parsed within limits. Knows nothing of what the document means."""

import json
import math
from collections import Counter
from typing import Any

from pydantic_core import from_json

from service.errors import InvalidBundle


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

    def finite(digits: str) -> float:
        number = float(digits)
        if not math.isfinite(number):
            raise InvalidBundle(f"{what} contains the number {digits[:40]}, which is too large")
        return number

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if len(mapping) != len(pairs):
            ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
            raise InvalidBundle(f"{what} has the key {twice[:80]!a} twice; once is right")
        return mapping

    try:
        from_json(raw, allow_inf_nan=False)  # strict in all but numbers that are too large and keys that come twice
        parsed = json.loads(raw, parse_float=finite, object_pairs_hook=unique)
    except ValueError as error:
        raise InvalidBundle(f"{what} is not valid JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise InvalidBundle(f"{what} is no JSON object")
    return parsed
