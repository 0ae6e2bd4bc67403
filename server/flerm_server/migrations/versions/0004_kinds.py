"""A table of comparability keys, an index by them, and which attempt another one resumed from.

Servers of the schema before work with this one: the recordings that they open have no key yet, and
newer servers add it.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    key = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "kinds",
        sa.Column("key", key, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("optimizer", sa.Text, nullable=False),
        sa.Column("settings", sa.Text, nullable=False),
        sa.Column("estimator", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_kinds"),
        sa.UniqueConstraint("digest", name="uq_kinds_digest"),
    )
    # No foreign key: SQLite would copy the whole table for one, and keys are never deleted.
    op.add_column("recordings", sa.Column("kind_key", key))
    op.create_index(
        "ix_recordings_family_key_role_variant_kind_key_status_lr",
        "recordings",
        ["family_key", "role", "variant", "kind_key", "status", "lr"],
    )
    op.add_column(
        "attempts", sa.Column("after_id", sa.String(36), nullable=False, server_default="")
    )
