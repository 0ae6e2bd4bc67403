"""The database counts the changes of each family's runs, and the recordings of each token.

Servers of the schema before work with this one: triggers count what they change.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from flerm_server.store.sql import change_counts

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "families", sa.Column("revision", sa.BigInteger, nullable=False, server_default="0")
    )
    op.create_table(
        "recording_counts",
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("recordings", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("created_by", name="pk_recording_counts"),
    )
    op.execute(
        "INSERT INTO recording_counts (created_by, recordings) "
        "SELECT created_by, count(*) FROM recordings WHERE created_by <> '' GROUP BY created_by"
    )
    postgres = op.get_bind().dialect.name == "postgresql"
    for statement in change_counts.POSTGRES if postgres else change_counts.SQLITE:
        op.execute(statement)
