"""The table of jobs, the same in SQLite and PostgreSQL."""

from sqlalchemy import BigInteger, Column, Float, Index, Integer, MetaData, String, Table, Text

from service.database import Moment

metadata = MetaData()
jobs = Table(
    "jobs",
    metadata,
    Column("id", String(32), primary_key=True),  # of its time: ids sort as their jobs came
    Column("domain", String(64), nullable=False),
    Column("actor", String(128), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("asked", Text, nullable=False),  # JSON
    Column("key", String(255)),  # an Idempotency-Key
    Column("request", String(71)),  # digest of what was asked under it
    Column("status", String(16), nullable=False, index=True),
    Column("created", Moment, nullable=False),
    Column("started", Moment),  # last
    Column("ended", Moment, index=True),
    Column("size", BigInteger, nullable=False),  # bytes of its files that count
    Column("progress", Float, nullable=False),  # 0 to 1
    Column("seconds", Float, nullable=False),  # of audio heard
    Column("error", Text),  # JSON of a problem
    Column("attempt", Integer, nullable=False),  # grows whenever a server takes it: who holds an older one has lost it
    Column("tries", Integer, nullable=False),  # since it last got on
    Column("leased_until", Moment),
    Column("log", Integer, nullable=False),  # the attempt whose log counts
    Column("logged", BigInteger, nullable=False),  # bytes of it that count
    Index("jobs_of_domain", "domain", "id"),
)
