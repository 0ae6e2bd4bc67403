"""Deleting many old recordings: few transactions, none of which holds the database for long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any

import sqlalchemy as sa

from flerm_core.records.queries import RecordingFilter
from flerm_core.records.validation import validate_filter
from flerm_server.store.sql.engine import database_now, timestamp_to_column, transaction
from flerm_server.store.sql.listings import conditions
from flerm_server.store.sql.locks import lock_families
from flerm_server.store.sql.tables import (
    attempts,
    families,
    measurements,
    recording_tags,
    recordings,
)

RECORDINGS_AT_ONCE, ROWS_AT_ONCE = 200, 10_000  # of one transaction

Condition = sa.ColumnElement[bool]


def prune(
    engine: sa.Engine, filters: RecordingFilter, before: datetime, *, dry_run: bool = False
) -> tuple[int, int]:
    """Deletes the recordings that pass `filters` and were last changed before `before`.

    Returns how many there were, and how many rows they had.

    dry_run: deletes nothing, and counts the rows that readers see.

    Raises `InvalidInput` for a filter that no recording can pass, such as an unknown status.
    """
    validate_filter(filters)
    with transaction(engine, unhurried=True) as connection:
        old = _old(filters, before, database_now(connection))
        if dry_run:
            count, rows = connection.execute(
                sa.select(sa.func.count(), sa.func.sum(recordings.c.rows)).where(*old)
            ).one()
            return count, int(rows or 0)
        found = connection.execute(
            sa.select(
                recordings.c.key,
                recordings.c.family_key,
                recordings.c.created_by,
                recordings.c.rows,
            )
            .where(*old)
            .order_by(recordings.c.family_key, recordings.c.created_by, recordings.c.key)
        ).all()
    count = rows = 0
    for family_key, keys in _parts(found):
        with transaction(engine, writes=True, unhurried=True) as connection:
            lock_families(connection, keys=[family_key])
            # What was written to since the list was made is not old any more.
            old = _old(filters, before, database_now(connection))
            query = sa.select(recordings.c.key).where(recordings.c.key.in_(keys), *old)
            locked = connection.scalars(query.order_by(recordings.c.key).with_for_update()).all()
            rows += _delete(connection, locked)
            count += len(locked)
    return count, rows


def _old(filters: RecordingFilter, before: datetime, now: int) -> list[Condition]:
    found = [*conditions(filters, now), recordings.c.updated_at < timestamp_to_column(before)]
    if filters.family:
        family = sa.select(families.c.key).where(families.c.name == filters.family)
        found.append(recordings.c.family_key == family.scalar_subquery())
    return found


def _parts(found: Sequence[Any]) -> Iterator[tuple[int, list[int]]]:
    """The recordings of one transaction each: the key of their one family, and theirs.

    They are of one token too, because a transaction locks the count of each token.
    """
    for (family_key, _), its in groupby(found, key=lambda row: (row.family_key, row.created_by)):
        keys: list[int] = []
        rows = 0
        for row in its:
            if keys and (len(keys) == RECORDINGS_AT_ONCE or rows + row.rows > ROWS_AT_ONCE):
                yield family_key, keys
                keys, rows = [], 0
            keys.append(row.key)
            rows += row.rows
        yield family_key, keys


def _delete(connection: sa.Connection, keys: Sequence[int]) -> int:
    """Deletes recordings with all that belongs to them; how many rows they had."""
    its_attempts = sa.select(attempts.c.key).where(attempts.c.recording_key.in_(keys))
    rows = connection.execute(
        measurements.delete().where(measurements.c.attempt_key.in_(its_attempts))
    ).rowcount
    connection.execute(attempts.delete().where(attempts.c.recording_key.in_(keys)))
    connection.execute(recording_tags.delete().where(recording_tags.c.recording_key.in_(keys)))
    connection.execute(recordings.delete().where(recordings.c.key.in_(keys)))
    return int(rows)
