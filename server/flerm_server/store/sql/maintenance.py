"""Renaming families, tagging recordings and deleting them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from flerm_core.errors import AlreadyExists, InvalidInput
from flerm_core.records.recording import Family
from flerm_core.records.validation import MAX_TAGS
from flerm_server.store.sql.listings import one_family
from flerm_server.store.sql.tables import (
    attempts,
    families,
    measurements,
    recording_tags,
    recordings,
)
from flerm_server.store.unknown_recording import unknown_recording

ROWS_AT_ONCE = 10_000  # of one DELETE


def rename_family(connection: sa.Connection, name: str, new_name: str, now: int) -> Family:
    """See `Store.rename_family`."""
    there = set(
        connection.execute(
            sa.select(families.c.name).where(families.c.name.in_([name, new_name]))
        ).scalars()
    )
    if there == {new_name}:
        return one_family(connection, new_name)
    if new_name in there:
        raise AlreadyExists(f"family {new_name!r} exists already: {name!r} needs a name of its own")
    one_family(connection, name)  # raises `NotFound`
    connection.execute(
        families.update().where(families.c.name == name).values(name=new_name, updated_at=now)
    )
    return one_family(connection, new_name)


def tag(
    connection: sa.Connection,
    recording_id: str,
    tags: Mapping[str, str],
    remove: Sequence[str],
    now: int,
) -> None:
    """See `Store.tag`."""
    key = _lock(connection, recording_id)
    if key is None:
        raise unknown_recording(recording_id)
    mine = recording_tags.c.recording_key == key
    connection.execute(
        recording_tags.delete().where(mine, recording_tags.c.name.in_([*remove, *tags]))
    )
    if tags:
        values = [
            {"recording_key": key, "name": name, "value": value} for name, value in tags.items()
        ]
        connection.execute(recording_tags.insert(), values)
    count = connection.execute(
        sa.select(sa.func.count()).select_from(recording_tags).where(mine)
    ).scalar_one()
    if count > MAX_TAGS:
        raise InvalidInput(
            f"set: recording {recording_id} would have {count} tags; at most {MAX_TAGS} are allowed"
        )
    connection.execute(recordings.update().where(recordings.c.key == key).values(updated_at=now))
    # Tags are among the settings that answers about a family are made of.
    family = sa.select(recordings.c.family_key).where(recordings.c.key == key).scalar_subquery()
    connection.execute(
        families.update().where(families.c.key == family).values(revision=families.c.revision + 1)
    )


def delete(connection: sa.Connection, recording_id: str) -> int:
    """See `Store.delete`."""
    key = _lock(connection, recording_id)
    if key is None:
        return 0
    its_attempts = sa.select(attempts.c.key).where(attempts.c.recording_key == key)
    rows = sum(
        _delete_rows(connection, attempt) for attempt in connection.scalars(its_attempts).all()
    )
    connection.execute(attempts.delete().where(attempts.c.recording_key == key))
    connection.execute(recording_tags.delete().where(recording_tags.c.recording_key == key))
    connection.execute(recordings.delete().where(recordings.c.key == key))
    return rows


def _delete_rows(connection: sa.Connection, attempt_key: int) -> int:
    """Deletes the rows of an attempt in steps, none of which takes long; how many there were."""
    of_attempt = measurements.c.attempt_key == attempt_key
    some = (
        sa.select(measurements.c.step)
        .where(of_attempt)
        .order_by(measurements.c.step)
        .limit(ROWS_AT_ONCE)
    )
    rows = 0
    while True:
        deleted = connection.execute(
            measurements.delete().where(of_attempt, measurements.c.step.in_(some))
        ).rowcount
        rows += deleted
        if deleted < ROWS_AT_ONCE:
            return rows


def _lock(connection: sa.Connection, recording_id: str) -> int | None:
    """Locks a recording; its key, or None where there is none."""
    key: int | None = connection.execute(
        sa.select(recordings.c.key).where(recordings.c.id == recording_id).with_for_update()
    ).scalar_one_or_none()
    return key
