"""The tables, as the code of this version uses them. `migrations/` makes them.

Moments are integers, microseconds since 1970 UTC: exact and alike on every database. Vectors are packed little-endian
float32.
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

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite numbers rows by itself only where the key is spelled INTEGER.
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
)

# Interned by content: thousands of recordings of one architecture share one row.
parameter_lists = Table(
    "parameter_lists",
    metadata,
    Column("key", Key, primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("count", Integer, nullable=False),
    Column("content", JSON, nullable=False),
)

# What recordings must share to stand in one set of targets, interned by content: `flerm_core.matching.base_selection.Kind`.
kinds = Table(
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
    # The state of the latest attempt, and what its visible rows come to; kept with every write.
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
    # Of `kinds`; none yet where a server of an older schema opened it: `store.kinds` sets it when it is first asked for.
    Column("kind_key", Key),
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
    # The smallest resume_at of later attempts: rows from there on are hidden.
    Column("visible_below", BigInteger, nullable=False),
    # The greatest step stored, -1 without any: what lies above it cannot have been sent before.
    Column("last_step", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False, server_default=""),
    # The id of the attempt that it resumed from, if that was told.
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

# `digest`: SHA-256 of the secret, which is kept nowhere. Revoked tokens stay: what they wrote names them.
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

# A browser that logged in with a token; ends with it.
sessions = Table(
    "sessions",
    metadata,
    Column("key", Key, primary_key=True),
    Column("id", String(12), nullable=False, unique=True),
    Column("digest", String(64), nullable=False),
    Column("token_key", ForeignKey("tokens.key"), nullable=False),
    Column("expires_at", BigInteger, nullable=False),
)

# One row: the oldest schema revision whose servers can still work with this database. A migration that takes
# something away raises it; one that only adds leaves it, so that old and new servers overlap.
schema_support = Table(
    "schema_support", metadata, Column("oldest_server", String(32), primary_key=True)
)
