"""The first schema: families, parameter lists, recordings, tags, attempts, measurements."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    key = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "schema_support",
        sa.Column("oldest_server", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("oldest_server", name="pk_schema_support"),
    )
    op.execute("INSERT INTO schema_support (oldest_server) VALUES ('0001')")
    op.create_table(
        "families",
        sa.Column("key", key, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("blocks", sa.JSON, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_families"),
        sa.UniqueConstraint("name", name="uq_families_name"),
    )
    op.create_table(
        "parameter_lists",
        sa.Column("key", key, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("content", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_parameter_lists"),
        sa.UniqueConstraint("digest", name="uq_parameter_lists_digest"),
    )
    op.create_table(
        "recordings",
        sa.Column("key", key, nullable=False),
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("family_key", key, nullable=False),
        sa.Column("parameters_key", key, nullable=False),
        sa.Column("parameter_count", sa.Integer, nullable=False),
        sa.Column("lr", sa.Double, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("variant", sa.Text, nullable=False),
        sa.Column("optimizer", sa.Text, nullable=False),
        sa.Column("optimizer_config", sa.JSON, nullable=False),
        sa.Column("config", sa.JSON, nullable=False),
        sa.Column("estimator", sa.JSON, nullable=False),
        sa.Column("world_size", sa.Integer, nullable=False),
        sa.Column("versions", sa.JSON, nullable=False),
        sa.Column("targets_digest", sa.Text, nullable=False),
        sa.Column("targets_sources", sa.JSON, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("first_step", sa.BigInteger, nullable=False),
        sa.Column("last_step", sa.BigInteger, nullable=False),
        sa.Column("final_loss", sa.Double),
        sa.Column("final_step", sa.BigInteger),
        sa.Column("tokens", sa.BigInteger),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("finished_at", sa.BigInteger),
        sa.Column("lease_until", sa.BigInteger, nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_recordings"),
        sa.UniqueConstraint("id", name="uq_recordings_id"),
        sa.ForeignKeyConstraint(["family_key"], ["families.key"], name="fk_recordings_family_key"),
        sa.ForeignKeyConstraint(
            ["parameters_key"], ["parameter_lists.key"], name="fk_recordings_parameters_key"
        ),
    )
    op.create_index("ix_recordings_created_at_key", "recordings", ["created_at", "key"])
    op.create_index(
        "ix_recordings_family_key_role_variant_lr",
        "recordings",
        ["family_key", "role", "variant", "lr"],
    )
    op.create_table(
        "recording_tags",
        sa.Column("recording_key", key, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("recording_key", "name", name="pk_recording_tags"),
        sa.ForeignKeyConstraint(
            ["recording_key"], ["recordings.key"], name="fk_recording_tags_recording_key"
        ),
    )
    op.create_index("ix_recording_tags_name_value", "recording_tags", ["name", "value"])
    op.create_table(
        "attempts",
        sa.Column("key", key, nullable=False),
        sa.Column("recording_key", key, nullable=False),
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("resume_at", sa.BigInteger, nullable=False),
        sa.Column("started_at", sa.BigInteger, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("finished_at", sa.BigInteger),
        sa.Column("world_size", sa.Integer, nullable=False),
        sa.Column("versions", sa.JSON, nullable=False),
        sa.Column("visible_below", sa.BigInteger, nullable=False),
        sa.Column("last_step", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_attempts"),
        sa.UniqueConstraint("recording_key", "number", name="uq_attempts_recording_key_number"),
        sa.UniqueConstraint("recording_key", "id", name="uq_attempts_recording_key_id"),
        sa.ForeignKeyConstraint(
            ["recording_key"], ["recordings.key"], name="fk_attempts_recording_key"
        ),
    )
    op.create_table(
        "measurements",
        sa.Column("attempt_key", key, nullable=False),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("fslr", sa.LargeBinary, nullable=False),
        sa.Column("loss", sa.Double),
        sa.Column("learning_rate", sa.Double),
        sa.Column("tokens", sa.BigInteger),
        sa.Column("measured_at", sa.BigInteger),
        sa.Column("committed_at", sa.BigInteger, nullable=False),
        sa.Column("extra", sa.LargeBinary),
        sa.PrimaryKeyConstraint("attempt_key", "step", name="pk_measurements"),
        sa.ForeignKeyConstraint(
            ["attempt_key"], ["attempts.key"], name="fk_measurements_attempt_key"
        ),
    )
