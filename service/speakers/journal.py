"""Who did what with whose voiceprints, without the voiceprints; and what was answered to calls with a key of their own.

Once a person is deleted, their rows name a hash of the id: who knows the id finds them, nobody else learns it.
"""

import hashlib
import secrets
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, NamedTuple

from sqlalchemy import Connection, delete, insert, select, update

from service import attempts
from service.attempts import Attempt
from service.errors import Conflict
from service.speakers.speaker import Voice
from service.speakers.tables import answers, uses

SERVER: Final = "server"  # the actor of what expires


class Action(StrEnum):
    PUT = "put"
    ENROL = "enrol"
    VERIFY = "verify"
    IDENTIFY = "identify"
    EXPORT = "export"
    DELETE = "delete"
    DELETE_ENROLMENT = "delete_enrolment"
    OPT_OUT = "opt_out"
    OPT_IN = "opt_in"
    EXPIRE = "expire"


class By(NamedTuple):
    """Whose speakers are meant, and who asks."""

    domain: str
    actor: str


@dataclass(frozen=True, slots=True)
class Use:
    """One use of a speaker's data."""

    at: datetime
    actor: str
    action: Action
    adapter: str | None
    version: int | None
    outcome: str | None


def record(
    connection: Connection,
    by: By,
    speaker: str,
    action: Action,
    now: datetime,
    voice: Voice | None = None,
    outcome: str | None = None,
) -> None:
    """One use more."""
    connection.execute(
        insert(uses).values(
            domain=by.domain,
            id=f"{time.time_ns():016x}{secrets.token_hex(8)}",  # in the order of their making
            at=now,
            actor=by.actor,
            action=action,
            speaker=pseudonym(by.domain, speaker) if action is Action.DELETE else speaker,
            adapter=None if voice is None else voice.adapter,
            version=None if voice is None else voice.version,
            outcome=outcome,
        )
    )


def uses_of(connection: Connection, domain: str, speaker: str) -> list[Use]:
    """The uses that are still kept, oldest first."""
    names = (speaker, pseudonym(domain, speaker))
    query = select(uses).where(uses.c.domain == domain, uses.c.speaker.in_(names)).order_by(uses.c.at, uses.c.id)
    return [
        Use(row.at, row.actor, Action(row.action), row.adapter, row.version, row.outcome)
        for row in connection.execute(query)
    ]


def removals(connection: Connection, domain: str, speaker: str) -> frozenset[str]:
    """The deletions and opt-outs of whoever had this id: a clip from before one of them may not be stored after it."""
    mine = (uses.c.domain == domain, uses.c.speaker.in_((speaker, pseudonym(domain, speaker))))
    query = select(uses.c.id).where(*mine, uses.c.action.in_((Action.DELETE, Action.OPT_OUT)))
    return frozenset(connection.scalars(query))


def forget_speaker(connection: Connection, domain: str, speaker: str) -> None:
    """Replace the id of a person who is being deleted, and what calls that named them were answered."""
    mine = (uses.c.domain == domain, uses.c.speaker == speaker)
    connection.execute(update(uses).where(*mine).values(speaker=pseudonym(domain, speaker)))
    told = (answers.c.domain == domain, answers.c.speaker == speaker)
    connection.execute(update(answers).where(*told).values(speaker="", answer=None))


def recall(connection: Connection, by: By, attempt: Attempt, now: datetime) -> str | None:
    """What an attempt was answered before.

    Raises:
        InvalidRequest: the key was used for something else.
        Conflict: the speaker has been deleted since.
    """
    row = attempts.recall(connection, answers, by._asdict(), attempt, now)
    if row is not None and row.answer is None:
        raise Conflict("this call was answered before, and its speaker has been deleted since")
    return None if row is None else str(row.answer)


def remember(connection: Connection, by: By, attempt: Attempt, speaker: str, answer: str, now: datetime) -> None:
    """Keep the answer of an attempt; it names nobody where `speaker` is empty."""
    attempts.remember(connection, answers, by._asdict(), attempt, now, speaker=speaker, answer=answer)


def sweep(connection: Connection, now: datetime, uses_kept: timedelta) -> int:
    """Remove what has been kept for long enough; how many rows that were."""
    old_uses = connection.execute(delete(uses).where(uses.c.at <= now - uses_kept)).rowcount
    return old_uses + attempts.forget(connection, answers, now)


def pseudonym(domain: str, speaker: str) -> str:
    """What the journal calls a deleted person: who knows the id finds the rows."""
    return "sha256:" + hashlib.sha256(f"{domain}/{speaker}".encode()).hexdigest()
