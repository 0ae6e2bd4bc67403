"""What a run says at its end of what was not measured or matched.

Servers of the schema before work with this one: what they write has no remarks.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("recordings", sa.Column("remarks", sa.JSON, nullable=False, server_default="[]"))
