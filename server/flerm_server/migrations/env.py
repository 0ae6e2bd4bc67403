"""Runs revisions on the connection that `flerm_server.store.sql.schema.upgrade` hands over, within its transaction."""

from __future__ import annotations

from alembic import context

from flerm_server.store.sql.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite's DDL is transactional too once the driver keeps its hands off.
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
