"""What uploads with an Idempotency-Key were answered, so that a retry is answered the same. Knows no files."""

import hashlib
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import Connection, delete, insert, select

from service.errors import InvalidRequest
from service.registry.tables import attempts

KEPT: Final = timedelta(days=7)  # then a key may be used anew
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One upload under a key of its caller's; `request` is the digest of everything that was asked."""

    actor: str
    key: str
    request: str

    @classmethod
    def of(cls, actor: str, key: str, name: str, activate: bool, digest: str) -> "Attempt":
        """Raises InvalidRequest for what cannot be a key."""
        if not _KEY.fullmatch(key):
            raise InvalidRequest(f"an Idempotency-Key is 1 to 255 visible ASCII characters, got {key[:80]!a}")
        asked = "\n".join((name, str(activate), digest))
        return cls(actor, key, f"sha256:{hashlib.sha256(asked.encode()).hexdigest()}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one."""

    name: str
    version: int
    created: bool
    live: bool


def recall(connection: Connection, attempt: Attempt) -> Outcome | None:
    """The answer that an attempt got before.

    Raises:
        InvalidRequest: the key was used for something else.
    """
    mine = (attempts.c.actor == attempt.actor, attempts.c.key == attempt.key)
    row = connection.execute(select(attempts).where(*mine, attempts.c.at > datetime.now(UTC) - KEPT)).one_or_none()
    if row is None:
        return None
    if row.request != attempt.request:
        raise InvalidRequest(
            f"the Idempotency-Key {attempt.key[:80]!a} was used for another upload, which became "
            f"{row.name}@{row.version}; a new upload needs a new key"
        )
    return Outcome(row.name, row.version, row.created, row.live)


def remember(connection: Connection, attempt: Attempt, outcome: Outcome) -> None:
    """Keep the answer of an attempt, and forget those that are too old."""
    now = datetime.now(UTC)
    connection.execute(delete(attempts).where(attempts.c.at <= now - KEPT))
    connection.execute(insert(attempts).values(**asdict(attempt), **asdict(outcome), at=now))
