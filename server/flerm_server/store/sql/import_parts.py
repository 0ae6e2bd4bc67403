"""Recordings of another registry, many in one transaction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import sqlalchemy as sa

from flerm_core.errors import FlermError, InvalidInput
from flerm_core.records.validation import (
    MAX_PARTS,
    validate_attempt,
    validate_ending,
    validate_spec,
)
from flerm_server.store.interface import Appended, Batch
from flerm_server.store.quotas import Quotas
from flerm_server.store.recording_part import Imported, RecordingPart
from flerm_server.store.sql import append_rows
from flerm_server.store.sql.compiled_statements import Driver
from flerm_server.store.sql.finish_attempt import finish_attempt
from flerm_server.store.sql.start_recording import StartRecording


def import_parts(
    connection: sa.Connection,
    parts: Sequence[RecordingPart],
    created_by: str,
    now: int,
    lease_until: int,
    quotas: Quotas,
) -> Imported:
    """`Store.import_parts` within a writing transaction.

    now, lease_until: the database's time and the end of a new lease, in microseconds.
    """
    _validate(parts)
    created = 0
    # In the order of their ids, so that two imports of the same never wait for each other.
    for part in sorted(parts, key=lambda each: each.recording_id):
        if part.spec is not None:
            with _named(part.recording_id):
                created += (
                    StartRecording(
                        connection, part.spec, part.attempt, created_by, now, lease_until, quotas
                    )
                    .execute()
                    .created
                )
    stored = _append(connection, parts, now, lease_until)
    for part in parts:
        if part.ending is not None:
            with _named(part.recording_id):
                finish_attempt(connection, part.recording_id, 0, part.ending, now)
    return Imported(
        created, sum(each.committed for each in stored), sum(each.duplicates for each in stored)
    )


def _append(
    connection: sa.Connection, parts: Sequence[RecordingPart], now: int, lease_until: int
) -> list[Appended]:
    """Stores the rows of all parts. Raises the first refusal."""
    batches = [Batch(part.recording_id, part.rows) for part in parts if part.rows]
    if not batches:
        return []
    driver = Driver.of(connection)
    driver.answers = [
        driver.all(each) for each in append_rows.state_of(connection.dialect, batches)
    ]
    stored = []
    for batch, answer in zip(
        batches, append_rows.append(driver, batches, now, lease_until), strict=True
    ):
        with _named(batch.recording_id):
            if isinstance(answer, FlermError):
                raise answer
            stored.append(answer)
    for statement in driver.last:
        driver.connection.execute(*statement)
    return stored


def _validate(parts: Sequence[RecordingPart]) -> None:
    if len(parts) > MAX_PARTS:
        raise InvalidInput(f"parts: {len(parts)} given; at most {MAX_PARTS} are allowed")
    known: set[str] = set()
    for part in parts:
        with _named(part.recording_id):
            if part.recording_id in known:
                raise InvalidInput("parts: two of one recording; send them in two requests")
            known.add(part.recording_id)
            if part.spec is not None:
                if part.spec.id != part.recording_id:
                    raise InvalidInput(
                        f"start.spec.id {part.spec.id!r}: only the part's recording_id is allowed"
                    )
                validate_spec(part.spec)
            if part.attempt is not None:
                validate_attempt(part.attempt)
            if part.ending is not None:
                validate_ending(part.ending)


@contextmanager
def _named(recording_id: str) -> Iterator[None]:
    """Inside, an error that does not name the recording gets its id."""
    try:
        yield
    except FlermError as error:
        if recording_id in str(error):
            raise
        raise type(error)(f"recording {recording_id[:80]!r}: {error}") from error
