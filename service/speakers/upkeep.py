"""What is done to speakers at rest without anybody asking: voiceprints expire, old rows go, keys are changed."""

import logging
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, delete, insert, select, update

from service.database import Database
from service.errors import NotReady, ServiceError
from service.speakers import journal, rows
from service.speakers.journal import SERVER, Action, By
from service.speakers.tables import enrolments, keys, metadata, speakers
from service.speakers.vault import Vault

_WAIT_MS: Final = 250  # for readers; nobody can write meanwhile
_AT_ONCE: Final = 200  # speakers in one transaction: others write between

_log = logging.getLogger(__name__)


def sweep(database: Database, now: datetime, uses_kept: timedelta) -> bool:
    """Remove voiceprints that have expired and rows of the journal that are old; whether there were any."""
    due, removed = _AT_ONCE, 0
    while due == _AT_ONCE:
        due, voiceprints = _expire(database, now)
        removed += voiceprints
    with database.write() as connection:
        return removed + journal.sweep(connection, now, uses_kept) > 0


def require_keys(connection: Connection, vault: Vault) -> None:
    """Raise NotReady unless all that is stored can be read here: servers with keys of their own would part it."""
    known = set(connection.scalars(select(keys.c.id)))
    if missing := known - vault.key_ids:
        raise NotReady(
            f"voiceprints are stored under the key {min(missing)}, which this server does not have: give it with "
            "--voiceprint-key-file or IPET_VOICEPRINT_KEYS, the same on every server"
        )
    if vault.current not in known:
        connection.execute(insert(keys).values(id=vault.current))


def rewrite(database: Database, vault: Vault) -> int:
    """Encrypt everything anew that is not under the current key; how many voiceprints that were."""
    count = 0
    while True:
        with database.write() as connection:
            require_keys(connection, vault)
            old = select(enrolments).where(enrolments.c.key_id != vault.current).limit(_AT_ONCE)
            found = connection.execute(old).all()
            for row in found:
                _rewrite(connection, vault, row)
            if not found:
                connection.execute(delete(keys).where(keys.c.id != vault.current))
                return count
            count += len(found)


def _rewrite(connection: Connection, vault: Vault, row: Any) -> None:
    place = rows.place_of(row.domain, row.speaker, row.enrolment, row.digest)
    stored = vault.encrypt(rows.decrypt(vault, row), place)
    mine = [enrolments.c[name] == getattr(row, name) for name in ("domain", "speaker", "enrolment")]
    connection.execute(update(enrolments).where(*mine).values(asdict(stored)))


def _expire(database: Database, now: datetime) -> tuple[int, int]:
    """Remove the voiceprints of some that have expired: how many speakers were due, and how many voiceprints went."""
    removed = 0
    with database.write() as connection:
        due = select(speakers).where(speakers.c.expires <= now)
        found = connection.execute(due.limit(_AT_ONCE)).all()
        for row in found:
            removed += expire(connection, row.domain, row.speaker, row.expires, now)
    return len(found), removed


def expire(connection: Connection, domain: str, speaker: str, due: datetime | None, now: datetime) -> int:
    """Remove the voiceprints of somebody who has expired; how many there were."""
    fields: dict[str, Any] = {"expires": None}
    found = rows.find(connection, domain, speaker)
    if count := rows.delete_enrolments(connection, domain, speaker):
        if any(found.had_enough(one.digest) for one in found.enrolments):  # who was pending is pending still
            fields["expired"] = due
        rows.touch(connection, domain, speaker)
        journal.record(connection, By(domain, SERVER), speaker, Action.EXPIRE, now)
    rows.set_fields(connection, domain, speaker, **fields)
    return count


def scrub(database: Database) -> bool:
    """Take what was deleted out of a database's files.

    SQLite overwrites what is deleted (`secure_delete`), and its write-ahead log holds what was written before until it
    is emptied. PostgreSQL keeps old rows until a vacuum, its log until that is recycled; there is no more to do here.

    Returns:
        Whether that was done; while others read an older moment of the database it has to be tried again.
    """
    try:
        with database.outside() as connection:
            if database.is_sqlite:
                connection.exec_driver_sql(f"PRAGMA busy_timeout = {_WAIT_MS}")
                return bool(connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()[0] == 0)
            for table in metadata.sorted_tables:
                connection.exec_driver_sql(f"VACUUM {table.name}")
    except ServiceError as error:
        _log.warning("what was deleted may still be in the database's files: %s", error.detail)
        return False
    return True
