"""What uploads with an Idempotency-Key were answered, so that a retry is answered the same. Knows no files."""

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import Connection, delete, insert, select

from service.errors import InvalidRequest
from service.registry.tables import answers

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
class Answer:
    """What it was answered."""

    name: str
    version: int
    created: bool
    live: bool


def recall(connection: Connection, attempt: Attempt) -> Answer | None:
    """The answer that an attempt got before.

    Raises:
        InvalidRequest: the key was used for something else.
    """
    mine = (answers.c.actor == attempt.actor, answers.c.key == attempt.key)
    row = connection.execute(select(answers).where(*mine, answers.c.at > datetime.now(UTC) - KEPT)).one_or_none()
    if row is None:
        return None
    if row.request != attempt.request:
        raise InvalidRequest(
            f"the Idempotency-Key {attempt.key[:80]!a} was used for another upload, which became "
            f"{row.name}@{row.version}; a new upload needs a new key"
        )
    return Answer(row.name, row.version, row.created, row.live)


def remember(connection: Connection, attempt: Attempt, answer: Answer) -> None:
    """Keep the answer of an attempt, and forget those that are too old."""
    now = datetime.now(UTC)
    connection.execute(delete(answers).where(answers.c.at <= now - KEPT))
    connection.execute(
        insert(answers).values(
            actor=attempt.actor,
            key=attempt.key,
            request=attempt.request,
            name=answer.name,
            version=answer.version,
            created=answer.created,
            live=answer.live,
            at=now,
        )
    )
