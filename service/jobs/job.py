"""One job: what was asked, and how far it has come."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Row


class Kind(StrEnum):
    EVENTS = "events"
    ENROLMENT = "enrolment"


class Status(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


OPEN: Final = (Status.QUEUED, Status.RUNNING)


@dataclass(frozen=True, slots=True)
class Job:
    """One job.

    Args:
        asked: what is to be done, as JSON has it.
        size: bytes of its files.
        progress: 0 to 1.
        seconds: of audio heard so far.
        error: the problem that it ended with.
        attempt: which of the servers that took it holds it.
        tries: how often it was taken since it last got on.
        log, logged: whose log counts, and how many bytes of it.
    """

    id: str
    domain: str
    actor: str
    kind: Kind
    asked: Mapping[str, Any]
    status: Status
    created: datetime
    started: datetime | None
    ended: datetime | None
    size: int
    progress: float
    seconds: float
    error: Mapping[str, Any] | None
    attempt: int
    tries: int
    log: int
    logged: int

    @property
    def adapters(self) -> Sequence[str]:
        """The versions it runs on, `name@2`."""
        return self.asked["adapters"]  # type: ignore[no-any-return]


def job_of(row: Row[Any]) -> Job:
    """The job of a row of the table."""
    names = ("id", "domain", "actor", "created", "started", "ended", "size", "progress", "seconds", "attempt")
    return Job(
        kind=Kind(row.kind),
        asked=json.loads(row.asked),
        status=Status(row.status),
        error=None if row.error is None else json.loads(row.error),
        **{name: getattr(row, name) for name in (*names, "tries", "log", "logged")},
    )
