"""Who changed what and when: one row for each change of an adapter, never changed, never deleted. Knows no files."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import Connection, insert, select

from service.registry.tables import audit

ANONYMOUS = "anonymous"  # the actor where no keys are asked for
MAX_ACTOR = 128  # characters


class Action(StrEnum):
    """What was done."""

    UPLOAD = "upload"
    REPAIR = "repair"  # the same bytes again, over damaged ones
    ALIAS = "alias"  # set or moved
    DELETE_ALIAS = "delete_alias"
    DELETE_VERSION = "delete_version"
    DELETE_ADAPTER = "delete_adapter"


@dataclass(frozen=True, slots=True)
class Event:
    """One change.

    Args:
        id: grows with time; None before it is recorded.
        actor: id of the key, or `anonymous`.
        previous: the version that a moved alias pointed to before.
    """

    at: datetime
    actor: str
    action: Action
    name: str
    version: int | None = None
    alias: str | None = None
    previous: int | None = None
    digest: str | None = None
    id: int | None = None


def append(connection: Connection, events: Iterable[Event]) -> None:
    """Append events, in their order."""
    rows = [{key: value for key, value in asdict(event).items() if key != "id"} for event in events]
    if rows:
        connection.execute(insert(audit), rows)


def history(connection: Connection, name: str, limit: int, before: int | None = None) -> list[Event]:
    """The newest events of an adapter, newest first; `before` an id, for the next page."""
    query = select(audit).where(audit.c.name == name).order_by(audit.c.id.desc()).limit(limit)
    if before is not None:
        query = query.where(audit.c.id < before)
    return [Event(**row | {"action": Action(row["action"])}) for row in map(dict, connection.execute(query).mappings())]
