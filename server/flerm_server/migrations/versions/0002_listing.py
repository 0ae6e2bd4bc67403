"""An index for listing one family, newest first; PostgreSQL no longer tries to compress vectors. Older servers work on."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "ix_recordings_family_key_created_at_key", "recordings", ["family_key", "created_at", "key"]
    )
    if op.get_bind().dialect.name == "postgresql":
        # Measured floats do not get smaller, and the attempt costs more than the write.
        op.execute("ALTER TABLE measurements ALTER COLUMN fslr SET STORAGE EXTERNAL")
