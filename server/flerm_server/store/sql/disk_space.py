"""Giving disk space back after recordings were deleted."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from flerm_core.errors import Unreachable
from flerm_server.store.sql.database_url import database_file
from flerm_server.store.sql.engine import execute_alone, transaction
from flerm_server.store.sql.tables import parameter_lists, recordings

LISTS_AT_ONCE = 500
LEAST_FREE = 0.1  # of a SQLite file; below it the file is not worth writing anew


def delete_unused_parameter_lists(engine: sa.Engine) -> int:
    """Deletes the parameter lists that no recording refers to; how many there were."""
    # Once for all lists: recordings have no index by their lists.
    unused = parameter_lists.c.key.not_in(sa.select(recordings.c.parameters_key))
    with transaction(engine, writes=True, unhurried=True) as connection:
        # A list that another transaction has locked is about to be referred to.
        keys = connection.scalars(
            sa.select(parameter_lists.c.key).where(unused).with_for_update(skip_locked=True)
        ).all()
        # Looked at again now that the lists are locked: a recording may have come in between.
        return sum(
            connection.execute(
                parameter_lists.delete().where(
                    parameter_lists.c.key.in_(keys[start : start + LISTS_AT_ONCE]), unused
                )
            ).rowcount
            for start in range(0, len(keys), LISTS_AT_ONCE)
        )


def give_back(engine: sa.Engine) -> str:
    """Makes the room of deleted rows free; what was done, as a sentence.

    What was deleted is deleted also where there is no room or no time for this.
    """
    try:
        return _give_back(engine)
    except Unreachable as error:
        return f"their room was not given back ({error}); it is used for new rows"


def _give_back(engine: sa.Engine) -> str:
    if engine.dialect.name == "sqlite":
        file = database_file(engine.url)
        before = _size(file)
        free = _free_part(engine)
        if free < LEAST_FREE:
            return f"{free:.0%} of the database's {before:,} bytes are free for new rows"
        execute_alone(engine, ["VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"])
        return f"the database takes {_size(file):,} bytes, before {before:,}"
    tables = ("measurements", "attempts", "recording_tags", "recordings", "parameter_lists")
    execute_alone(engine, [f"VACUUM {table}" for table in tables])
    return "their room is used for new rows; VACUUM FULL gives it back to the disk"


def _free_part(engine: sa.Engine) -> float:
    """Which part of a SQLite file is free."""
    with transaction(engine) as connection:
        free, pages = (
            int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
            for name in ("freelist_count", "page_count")
        )
    return free / pages if pages else 0.0


def _size(file: Path) -> int:
    """Bytes of a SQLite file and its log."""
    log = Path(f"{file}-wal")
    return file.stat().st_size + (log.stat().st_size if log.exists() else 0)
