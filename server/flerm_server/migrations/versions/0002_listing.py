"""An index for listing one family, newest first; PostgreSQL does not try to compress vectors.

Servers of the schema before work with this one.
"""

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
        # Measured floats do not get smaller, and to try costs more time than the write itself.
        op.execute("ALTER TABLE measurements ALTER COLUMN fslr SET STORAGE EXTERNAL")
