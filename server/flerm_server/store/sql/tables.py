"""The tables, as the code of this version uses them. `migrations/` makes them.

Timestamps are integers, microseconds since 1970 UTC: exact, and the same on every database. Vectors
are packed as little-endian float32.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
)

NEEDS = "0006"
"""The oldest schema revision that has all columns below; revisions are compared as text."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite chooses the keys of new rows only where the column's type is spelled INTEGER.
Key = BigInteger().with_variant(Integer, "sqlite")

families = Table(
    "families",
    metadata,
    Column("key", Key, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("description", Text, nullable=False),
    Column("blocks", JSON, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    # How often the family's runs changed; the database counts it, see `change_counts`.
    Column("revision", BigInteger, nullable=False, server_default="0"),
)

# Stored once for each content: thousands of recordings of one architecture share one row.
parameter_lists = Table(
    "parameter_lists",
    metadata,
    Column("key", Key, primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("count", Integer, nullable=False),
    Column("content", JSON, nullable=False),
)

# What recordings must share to stand in one set of targets, stored once for each content: see
# `flerm_core.records.comparability.ComparabilityKey` and `store.sql.comparability`.
comparability_keys = Table(
    "kinds",
    metadata,
    Column("key", Key, primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("optimizer", Text, nullable=False),
    Column("settings", Text, nullable=False),
    Column("estimator", Text, nullable=False),
)

recordings = Table(
    "recordings",
    metadata,
    Column("key", Key, primary_key=True),
    Column("id", String(36), nullable=False, unique=True),
    Column("family_key", ForeignKey("families.key"), nullable=False),
    Column("parameters_key", ForeignKey("parameter_lists.key"), nullable=False),
    Column("parameter_count", Integer, nullable=False),
    Column("lr", Double, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("role", Text, nullable=False),
    Column("variant", Text, nullable=False),
    Column("optimizer", Text, nullable=False),
    Column("optimizer_config", JSON, nullable=False),
    Column("config", JSON, nullable=False),
    Column("estimator", JSON, nullable=False),
    Column("world_size", Integer, nullable=False),
    Column("versions", JSON, nullable=False),
    Column("targets_digest", Text, nullable=False),
    Column("targets_sources", JSON, nullable=False),
    # The state of the latest attempt, and the count, ends and tokens of the visible rows. Every
    # write keeps them up to date.
    Column("status", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("first_step", BigInteger, nullable=False),
    Column("last_step", BigInteger, nullable=False),
    Column("final_loss", Double),
    Column("final_step", BigInteger),
    Column("tokens", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("finished_at", BigInteger),
    Column("lease_until", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    # The key of the recording's row in `comparability_keys`. Servers of an older schema leave NULL,
    # and `store.sql.comparability.backfill` sets the key before targets are first asked for.
    Column("kind_key", Key),
    Column("remarks", JSON, nullable=False, server_default="[]"),
    Index(None, "created_at", "key"),
    Index(None, "family_key", "role", "variant", "lr"),
    Index(None, "family_key", "created_at", "key"),
    Index(None, "created_by"),
    Index(None, "family_key", "role", "variant", "kind_key", "status", "lr"),
)

recording_tags = Table(
    "recording_tags",
    metadata,
    Column("recording_key", ForeignKey("recordings.key"), nullable=False),
    Column("name", Text, nullable=False),
    Column("value", Text, nullable=False),
    PrimaryKeyConstraint("recording_key", "name"),
    Index(None, "name", "value"),
)

# How many recordings each `created_by` but the empty one has; the database counts them, see
# `change_counts`.
recording_counts = Table(
    "recording_counts",
    metadata,
    Column("created_by", Text, primary_key=True),
    Column("recordings", BigInteger, nullable=False),
)

NEVER = 2**63 - 1  # a step that no run reaches: `visible_below` of an attempt without later ones

attempts = Table(
    "attempts",
    metadata,
    Column("key", Key, primary_key=True),
    Column("recording_key", ForeignKey("recordings.key"), nullable=False),
    Column("id", String(36), nullable=False),
    Column("number", Integer, nullable=False),
    Column("resume_at", BigInteger, nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("status", Text, nullable=False),
    Column("finished_at", BigInteger),
    Column("world_size", Integer, nullable=False),
    Column("versions", JSON, nullable=False),
    # The smallest `resume_at` of later attempts: rows from this step on are hidden.
    Column("visible_below", BigInteger, nullable=False),
    # The greatest step stored, -1 for none: a row above it cannot have been stored before.
    Column("last_step", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False, server_default=""),
    # The id of the attempt from whose checkpoint this one resumed, where the client sent that.
    Column("after_id", String(36), nullable=False, server_default=""),
    UniqueConstraint("recording_key", "number"),
    UniqueConstraint("recording_key", "id"),
)

measurements = Table(
    "measurements",
    metadata,
    Column("attempt_key", ForeignKey("attempts.key"), nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("fslr", LargeBinary, nullable=False),
    Column("loss", Double),
    Column("learning_rate", Double),
    Column("tokens", BigInteger),
    Column("measured_at", BigInteger),
    Column("committed_at", BigInteger, nullable=False),
    Column("extra", LargeBinary),
    PrimaryKeyConstraint("attempt_key", "step"),
)

# `digest`: SHA-256 of the secret, which is not stored. Revoked tokens stay in the table, for
# `created_by` of recordings and families names them.
tokens = Table(
    "tokens",
    metadata,
    Column("key", Key, primary_key=True),
    Column("id", String(12), nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("scope", Text, nullable=False),
    Column("family", Text, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
)

# A browser's login with a token. A session does not outlive its token.
sessions = Table(
    "sessions",
    metadata,
    Column("key", Key, primary_key=True),
    Column("id", String(12), nullable=False, unique=True),
    Column("digest", String(64), nullable=False),
    Column("token_key", ForeignKey("tokens.key"), nullable=False),
    Column("expires_at", BigInteger, nullable=False),
)

# One row: the oldest schema revision whose servers can still work with this database. A migration
# that removes something raises it. One that only adds leaves it, so that servers of the old and of
# the new version run at the same time.
schema_support = Table(
    "schema_support", metadata, Column("oldest_server", String(32), primary_key=True)
)
