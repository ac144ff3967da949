"""The tables of the catalogue, the same in SQLite and PostgreSQL. Knows no queries.

Rows of deleted adapters and versions stay, marked: numbers are never used again and digests are remembered.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
)

from service.database import FILL, Moment

metadata = MetaData()

# Keys of older releases are of the domain `default`, and so is what was uploaded then; bundles found at start are not.
_DOMAIN_OF_OLD = (
    "UPDATE versions SET domain = 'default' WHERE NOT EXISTS (SELECT 1 FROM audit WHERE audit.name = versions.name "
    "AND audit.version = versions.version AND audit.action = 'upload' AND audit.actor = 'server')"
)

adapters = Table(
    "adapters",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("last_version", Integer, nullable=False),
)
versions = Table(
    "versions",
    metadata,
    Column("name", ForeignKey("adapters.name"), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(71), nullable=False, index=True),
    Column("config", LargeBinary, nullable=False),  # the manifest's bytes: listing reads no files
    Column("weights_bytes", BigInteger, nullable=False),
    Column("created", Moment, nullable=False),
    Column("deleted", Moment),
    Column("bytes", BigInteger),  # of all files; null of versions that older releases took
    Column("domain", String(64), info={FILL: _DOMAIN_OF_OLD}),  # whose quota it counts to; null is nobody's
    Index("versions_of_digest", "name", "digest"),
)
aliases = Table(
    "aliases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("alias", String(64), primary_key=True),
    Column("version", Integer, nullable=False),
    ForeignKeyConstraint(["name", "version"], ["versions.name", "versions.version"]),
)
# The revision at which an adapter last changed. The largest is the catalogue's: it only grows, and whoever
# follows the catalogue reads the adapters above the one it knows.
changes = Table(
    "changes",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("revision", BigInteger, nullable=False, unique=True),
)
audit = Table(
    "audit",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("at", Moment, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("action", String(32), nullable=False),
    Column("name", String(64), nullable=False),
    Column("version", Integer),
    Column("alias", String(64)),
    Column("previous", Integer),  # what a moved alias pointed to
    Column("digest", String(71)),
    Index("audit_of_name", "name", "id"),
)
# What uploads with an Idempotency-Key were answered.
answers = Table(
    "answers",
    metadata,
    Column("actor", String(128), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("request", String(71), nullable=False),  # digest of what was asked
    Column("name", String(64), nullable=False),
    Column("version", Integer, nullable=False),
    Column("live", Boolean, nullable=False),
    Column("created", Boolean, nullable=False),
    Column("at", Moment, nullable=False, index=True),
)
identity = Table("identity", metadata, Column("id", String(36), primary_key=True))
