"""The tables of speakers, the same in SQLite and PostgreSQL. The domain is in every primary key.

What is deleted is gone: no row is only marked. Opt-outs outlive the person's other rows; a number that means nobody
any more tells those who hold voiceprints in memory that one is gone.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

from service.database import Moment

metadata = MetaData()


def _place() -> tuple[Column[str], Column[str]]:
    return Column("domain", String(64), primary_key=True), Column("speaker", String(128), primary_key=True)


speakers = Table(
    "speakers",
    metadata,
    *_place(),
    Column("number", BigInteger, nullable=False),  # the revision that made it
    Column("created", Moment, nullable=False),
    Column("used", Moment, nullable=False),
    Column("lifetime", BigInteger),  # seconds after the last use
    Column("expires", Moment, index=True),  # the sum of both
    Column("expired", Moment),
    Column("last_enrolment", Integer, nullable=False),
    Column("consent_by", String(256)),
    Column("consent_at", Moment),
    Column("consent_text", Text),
)
enrolments = Table(
    "enrolments",
    metadata,
    *_place(),
    Column("enrolment", Integer, primary_key=True, autoincrement=False),
    Column("adapter", String(64), nullable=False),
    Column("version", Integer, nullable=False),
    Column("digest", String(71), nullable=False),
    Column("speech_seconds", Float, nullable=False),
    Column("needed_seconds", Float),  # null in rows of older releases: counts as enough
    Column("warnings", String(256), nullable=False),  # space-separated
    Column("created", Moment, nullable=False),
    Column("key_id", String(16), nullable=False),
    Column("wrapped_key", LargeBinary, nullable=False),  # of this vector alone, under the key named
    Column("vector", LargeBinary, nullable=False),
    ForeignKeyConstraint(["domain", "speaker"], ["speakers.domain", "speakers.speaker"]),
    Index("enrolments_of_digest", "domain", "digest"),
    Index("enrolments_of_key", "key_id"),
)
opt_outs = Table("opt_outs", metadata, *_place(), Column("at", Moment, nullable=False))
# The revision at which a speaker's voiceprints last changed; numbers of deleted ones stay, and mean nobody.
changes = Table(
    "speaker_changes",
    metadata,
    Column("domain", String(64), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("revision", BigInteger, nullable=False, unique=True),
    Index("speaker_changes_of_domain", "domain", "revision"),
)
uses = Table(
    "speaker_uses",
    metadata,
    Column("domain", String(64), primary_key=True),
    Column("id", String(32), primary_key=True),
    Column("at", Moment, nullable=False, index=True),
    Column("actor", String(128), nullable=False),
    Column("action", String(32), nullable=False),
    Column("speaker", String(128), nullable=False),
    Column("adapter", String(64)),
    Column("version", Integer),
    Column("outcome", String(64)),
    Index("uses_of_speaker", "domain", "speaker", "at"),
)
# What changes with an Idempotency-Key were answered; of a deleted speaker only that there was an answer.
answers = Table(
    "speaker_answers",
    metadata,
    Column("domain", String(64), primary_key=True),
    Column("actor", String(128), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("request", String(71), nullable=False),  # digest of what was asked
    Column("speaker", String(128), nullable=False),
    Column("answer", Text),
    Column("at", Moment, nullable=False, index=True),
    Index("answers_of_speaker", "domain", "speaker"),
)
keys = Table("voiceprint_keys", metadata, Column("id", String(16), primary_key=True))
