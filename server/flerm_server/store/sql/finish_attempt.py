"""The end of an attempt."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from flerm_core.errors import AlreadyExists, NotFound
from flerm_core.records.recording import FINAL_STATUSES, Ending
from flerm_server.store.sql.client_clock import on_database_clock
from flerm_server.store.sql.mappers import ending_to_row
from flerm_server.store.sql.tables import attempts, recordings
from flerm_server.store.unknown_recording import unknown_recording


def finish_attempt(
    connection: sa.Connection,
    recording_id: str,
    attempt: int,
    ending: Ending,
    now: int,
    acknowledged_step: int | None = None,
) -> None:
    """`Store.finish` within a writing transaction.

    now: the database's time in microseconds.
    """
    recording, found = lock_attempt(connection, recording_id, attempt)
    require_acknowledged(recording_id, found.number, found.last_step, acknowledged_step)
    if found.status == ending.status:
        return
    if found.status in FINAL_STATUSES:
        raise AlreadyExists(
            f"recording {recording_id}: attempt {found.number} ended as "
            f"{found.status}, not as {ending.status}"
        )
    finished_at = _finished_at(ending, recording.created_at, now)
    connection.execute(
        attempts.update()
        .where(attempts.c.key == found.key)
        .values(status=ending.status, finished_at=finished_at)
    )
    if found.number == recording.attempt:
        connection.execute(
            recordings.update()
            .where(recordings.c.key == recording.key)
            .values(ending_to_row(ending) | {"finished_at": finished_at, "updated_at": now})
        )


def _finished_at(ending: Ending, created_at: int, now: int) -> int:
    """When the attempt ended, on the database's clock.

    The moment lies between the recording's start and `now`, whatever the client's clock shows. It
    may lie before the start of the attempt: an attempt that only judges a run has the run's end.
    """
    if ending.finished_at is None:
        return now
    stated = on_database_clock(ending.finished_at, ending.sent_at, now)
    return min(max(stated, created_at), now)


def lock_attempt(connection: sa.Connection, recording_id: str, number: int) -> tuple[Any, Any]:
    """Locks a recording; its row and that of its attempt `number` (0: the latest).

    Raises `NotFound`.
    """
    recording = connection.execute(
        sa.select(recordings.c.key, recordings.c.attempt, recordings.c.created_at)
        .where(recordings.c.id == recording_id)
        .with_for_update()
    ).one_or_none()
    if recording is None:
        raise unknown_recording(recording_id)
    attempt = connection.execute(
        sa.select(attempts).where(
            attempts.c.recording_key == recording.key,
            attempts.c.number == (number or recording.attempt),
        )
    ).one_or_none()
    if attempt is None:
        raise unknown_attempt(recording_id, number, recording.attempt)
    return recording, attempt


def require_acknowledged(
    recording_id: str, attempt: int, last_step: int, acknowledged_step: int | None
) -> None:
    """Raises `NotFound` where an attempt lacks a step that was acknowledged.

    The database was then restored from an older copy, or failed over to a host that lagged behind.

    last_step: the greatest step of the attempt that is stored; below 0: none.
    """
    if acknowledged_step is not None and acknowledged_step > last_step:
        stored = f"the steps up to {last_step}" if last_step >= 0 else "no step"
        raise NotFound(
            f"recording {recording_id}: attempt {attempt} has {stored}, and not step "
            f"{acknowledged_step}, which was acknowledged; the database is an older copy: send "
            "the attempt from its start again"
        )


def unknown_attempt(recording_id: str, number: int, latest: int) -> NotFound:
    """The error for a number that none of a recording's attempts has."""
    return NotFound(f"recording {recording_id} has no attempt {number}; its latest is {latest}")
