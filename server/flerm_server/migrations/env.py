"""Runs migrations within the transaction of `flerm_server.store.sql.schema.upgrade`."""

from __future__ import annotations

from alembic import context

from flerm_server.store.sql.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite can undo changes of the schema too, as the driver opens no transactions of its own.
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
