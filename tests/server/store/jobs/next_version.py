"""The server's commands as the next version would have them: one more migration, which its
statements need.

It adds, as the first half of a change: a column with a default that older servers do not know, and
an index. Every start and every append of this version touches the column.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import sqlalchemy as sa

from flerm_server.store.sql import revisions, schema, tables

MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision = "9001"
down_revision = "{before}"
branch_labels = None
depends_on = None


def upgrade():
    op.add_column("recordings", sa.Column("region", sa.Text, nullable=False, server_default="here"))
    op.create_index("ix_recordings_region", "recordings", ["region"])
"""


def main() -> None:
    before = schema.head()
    with tempfile.TemporaryDirectory() as folder:
        versions = Path(folder) / "versions"
        versions.mkdir()
        for each in revisions.MIGRATIONS.rglob("*.py*"):
            if "__pycache__" not in each.parts:
                (Path(folder) / each.relative_to(revisions.MIGRATIONS)).write_text(each.read_text())
        (versions / "9001_region.py").write_text(MIGRATION.format(before=before))
        revisions.MIGRATIONS = Path(folder)
        schema.NEEDS = "9001"
        tables.recordings.append_column(
            sa.Column("region", sa.Text, nullable=False, server_default="here")
        )
        from flerm_server.cli import app

        app(sys.argv[1:])


if __name__ == "__main__":
    main()
