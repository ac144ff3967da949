"""Speakers read from and written to their tables, within a transaction of the caller's."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Table, and_, delete, func, insert, select, union, update

from service.speakers.speaker import Consent, Enrolment, Speaker
from service.speakers.tables import changes, enrolments, opt_outs, speakers
from service.speakers.vault import Encrypted, Vault, Vector

AT_ONCE: Final = 500  # speakers in one query


def find(connection: Connection, domain: str, speaker: str) -> Speaker:
    """One speaker; an empty one where there is none of that id."""
    return load(connection, domain, [speaker])[0]


def load(connection: Connection, domain: str, ids: Sequence[str]) -> list[Speaker]:
    """The speakers of these ids, in this order."""
    rows = {row.speaker: row for row in connection.execute(select(speakers).where(_among(speakers, domain, ids)))}
    outs = {row.speaker: row.at for row in connection.execute(select(opt_outs).where(_among(opt_outs, domain, ids)))}
    found: dict[str, list[Enrolment]] = defaultdict(list)
    columns = [column for column in enrolments.c if column.name not in ("key_id", "wrapped_key", "vector")]
    query = select(*columns).where(_among(enrolments, domain, ids)).order_by(enrolments.c.enrolment)
    for row in connection.execute(query):
        found[row.speaker].append(_enrolment(row))
    return [_speaker(domain, one, rows.get(one), outs.get(one), found[one]) for one in ids]


def ids_after(connection: Connection, domain: str, after: str, limit: int) -> list[str]:
    """The next ids of a domain, in order, those that only opted out too."""
    known = union(
        *(select(table.c.speaker).where(table.c.domain == domain, table.c.speaker > after) for table in _WITH_IDS)
    ).subquery()
    return list(connection.scalars(select(known.c.speaker).order_by(known.c.speaker).limit(limit)))


def number_of(connection: Connection, domain: str, speaker: str) -> int | None:
    """What tells a speaker from a later one of the same id."""
    return connection.scalar(select(speakers.c.number).where(_is(speakers, domain, speaker)))


def last_enrolment(connection: Connection, domain: str, speaker: str) -> int:
    """The number of the enrolment that came last, even if it is gone."""
    return int(connection.scalar(select(speakers.c.last_enrolment).where(_is(speakers, domain, speaker))) or 0)


def add(connection: Connection, domain: str, speaker: str, now: datetime) -> None:
    """A new speaker without anything."""
    number = next_revision(connection)
    row = {"domain": domain, "speaker": speaker, "number": number, "created": now, "used": now, "last_enrolment": 0}
    connection.execute(insert(speakers).values(row))
    connection.execute(insert(changes).values(domain=domain, number=number, revision=number))


def touch(connection: Connection, domain: str, speaker: str) -> None:
    """Tell those who hold voiceprints in memory that this speaker's have changed."""
    number = number_of(connection, domain, speaker)
    wanted = (changes.c.domain == domain, changes.c.number == number)
    connection.execute(update(changes).where(*wanted).values(revision=next_revision(connection)))


def set_fields(connection: Connection, domain: str, speaker: str, **fields: Any) -> None:
    connection.execute(update(speakers).where(_is(speakers, domain, speaker)).values(**fields))


def use(connection: Connection, speaker: Speaker, now: datetime) -> None:
    """Begin the time anew after which the voiceprints expire."""
    expires = None if speaker.lifetime is None else now + speaker.lifetime
    set_fields(connection, speaker.domain, speaker.id, used=now, expires=expires)
    if expires is not None:
        touch(connection, speaker.domain, speaker.id)


def add_enrolment(connection: Connection, vault: Vault, speaker: Speaker, enrolment: Enrolment, vector: Vector) -> None:
    stored = vault.encrypt(vector, place_of(speaker.domain, speaker.id, enrolment.id, enrolment.digest))
    own = asdict(enrolment) | {"warnings": " ".join(enrolment.warnings), "enrolment": enrolment.id}
    del own["id"]
    values = {"domain": speaker.domain, "speaker": speaker.id, **own, **asdict(stored)}
    connection.execute(insert(enrolments).values(values))


def vectors(connection: Connection, vault: Vault, speaker: Speaker, digest: str | None = None) -> dict[int, Vector]:
    """The vectors of a speaker's enrolments, of one version of an adapter or of all, by their numbers."""
    query = select(enrolments).where(_is(enrolments, speaker.domain, speaker.id)).order_by(enrolments.c.enrolment)
    if digest is not None:
        query = query.where(enrolments.c.digest == digest)
    return {row.enrolment: decrypt(vault, row) for row in connection.execute(query)}


def decrypt(vault: Vault, row: Any) -> Vector:
    """The vector of a row of enrolments."""
    stored = Encrypted(row.key_id, bytes(row.wrapped_key), bytes(row.vector))
    return vault.decrypt(stored, place_of(row.domain, row.speaker, row.enrolment, row.digest))


def delete_enrolments(connection: Connection, domain: str, speaker: str, enrolment: int | None = None) -> int:
    """Remove one of a speaker's enrolments, or all of them; how many there were."""
    query = delete(enrolments).where(_is(enrolments, domain, speaker))
    if enrolment is not None:
        query = query.where(enrolments.c.enrolment == enrolment)
    return connection.execute(query).rowcount


def remove(connection: Connection, domain: str, speaker: str) -> None:
    """Everything of a speaker but an opt-out."""
    delete_enrolments(connection, domain, speaker)
    touch(connection, domain, speaker)
    connection.execute(delete(speakers).where(_is(speakers, domain, speaker)))


def set_opt_out(connection: Connection, domain: str, speaker: str, at: datetime | None) -> None:
    """Note an opt-out, or lift it."""
    if at is None:
        connection.execute(delete(opt_outs).where(_is(opt_outs, domain, speaker)))
    elif connection.scalar(select(opt_outs.c.at).where(_is(opt_outs, domain, speaker))) is None:
        connection.execute(insert(opt_outs).values(domain=domain, speaker=speaker, at=at))


def next_revision(connection: Connection) -> int:
    return int(connection.scalar(select(func.max(changes.c.revision))) or 0) + 1


def place_of(domain: str, speaker: str, enrolment: int, digest: str) -> str:
    """Where a vector is stored: it does not open anywhere else."""
    return f"{domain}/{speaker}/{enrolment}/{digest}"


_WITH_IDS: Final = (speakers, opt_outs)


def _is(table: Table, domain: str, speaker: str) -> ColumnElement[bool]:
    return and_(table.c.domain == domain, table.c.speaker == speaker)


def _among(table: Table, domain: str, ids: Sequence[str]) -> ColumnElement[bool]:
    return and_(table.c.domain == domain, table.c.speaker.in_(ids))


def _enrolment(row: Any) -> Enrolment:
    needed, warnings = row.needed_seconds or 0.0, tuple(row.warnings.split())
    of_adapter = row.adapter, row.version, row.digest
    return Enrolment(row.enrolment, *of_adapter, row.speech_seconds, needed, warnings, row.created)


def _speaker(domain: str, speaker: str, row: Any, opted_out: datetime | None, found: Sequence[Enrolment]) -> Speaker:
    if row is None:
        return Speaker(domain, speaker, opted_out=opted_out)
    consent = None
    if row.consent_by is not None:
        consent = Consent(row.consent_by, row.consent_at, row.consent_text)
    return Speaker(
        domain,
        speaker,
        created=row.created,
        used=row.used,
        lifetime=None if row.lifetime is None else timedelta(seconds=row.lifetime),
        expired=row.expired,
        opted_out=opted_out,
        consent=consent,
        enrolments=tuple(found),
    )
