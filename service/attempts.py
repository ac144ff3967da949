"""What changes with an Idempotency-Key were answered, so that a retry is answered the same.

Each room keeps its answers in a table of its own, which has the columns `key`, `request` and `at` beside those that
say whose key it is and what was answered.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, Table, delete, insert, select

from service.errors import InvalidRequest

KEPT: Final = timedelta(days=7)  # then a key may be used anew
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")

Caller = Mapping[str, str]  # the columns that say whose key it is


@dataclass(frozen=True, slots=True)
class Attempt:
    """One change under a key of its caller's; `request` is the digest of everything that was asked."""

    key: str
    request: str

    @classmethod
    def of(cls, key: str | None, *asked: bytes) -> "Attempt | None":
        """None without a key. Raises InvalidRequest for what cannot be one."""
        if key is None:
            return None
        if not _KEY.fullmatch(key):
            raise InvalidRequest(f"an Idempotency-Key is 1 to 255 visible ASCII characters, got {key[:80]!a}")
        whole = asked[0] if len(asked) == 1 else b"".join(hashlib.sha256(part).digest() for part in asked)
        return cls(key, f"sha256:{hashlib.sha256(whole).hexdigest()}")


def recall(
    connection: Connection, table: Table, caller: Caller, attempt: Attempt, now: datetime, other: str = "another call"
) -> Row[Any] | None:
    """The row of what an attempt was answered before.

    Args:
        other: what else the key may have been used for, of its `row`.

    Raises:
        InvalidRequest: it was.
    """
    query = select(table).where(*_mine(table, caller, attempt), table.c.at > now - KEPT)
    row = connection.execute(query).one_or_none()
    if row is not None and row.request != attempt.request:
        told = other.format(row=row)
        raise InvalidRequest(f"the Idempotency-Key {attempt.key[:80]!a} was used for {told}; use a new one")
    return row


def remember(
    connection: Connection, table: Table, caller: Caller, attempt: Attempt, now: datetime, **answer: object
) -> None:
    """Keep the answer of an attempt."""
    connection.execute(delete(table).where(*_mine(table, caller, attempt)))  # one that is too old
    connection.execute(insert(table).values(**caller, **asdict(attempt), **answer, at=now))


def forget(connection: Connection, table: Table, now: datetime) -> int:
    """Remove answers that are too old; how many there were."""
    return connection.execute(delete(table).where(table.c.at <= now - KEPT)).rowcount


def _mine(table: Table, caller: Caller, attempt: Attempt) -> list[ColumnElement[bool]]:
    return [table.c[name] == value for name, value in {**caller, "key": attempt.key}.items()]
