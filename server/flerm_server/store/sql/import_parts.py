"""Recordings of another registry, many in one transaction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import sqlalchemy as sa

from flerm_core.errors import FlermError, InvalidInput
from flerm_core.records.comparability import comparability_of
from flerm_core.records.recording import RecordingSpec
from flerm_core.records.validation import (
    MAX_PARTS,
    validate_attempt,
    validate_ending,
    validate_spec,
)
from flerm_server.store.interface import Appended, Batch
from flerm_server.store.quotas import Quotas
from flerm_server.store.recording_part import Imported, RecordingPart
from flerm_server.store.sql import append_rows, comparability
from flerm_server.store.sql.compiled_statements import Driver
from flerm_server.store.sql.finish_attempt import finish_attempt
from flerm_server.store.sql.locks import lock_families, lock_recordings
from flerm_server.store.sql.start_recording import StartRecording, intern_parameters


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
    started = [(part.spec, part) for part in parts if part.spec is not None]
    _lock(connection, parts, [spec for spec, _ in started])
    # In one order, in which families that are new are made.
    for spec, part in sorted(started, key=lambda each: (each[0].family, each[0].id)):
        with _named(part.recording_id):
            created += (
                StartRecording(connection, spec, part.attempt, created_by, now, lease_until, quotas)
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


def _lock(
    connection: sa.Connection, parts: Sequence[RecordingPart], specs: Sequence[RecordingSpec]
) -> None:
    """Locks all that the parts change, in the order of `locks`, before any of it is changed."""
    ids = [part.recording_id for part in parts]
    lock_families(connection, names=[spec.family for spec in specs], recording_ids=ids)
    lists = {spec.parameters.digest: spec.parameters for spec in specs}
    for _, parameters in sorted(lists.items()):
        intern_parameters(connection, parameters)
    for kind in sorted(set(map(comparability_of, specs)), key=comparability.digest_of):
        comparability.intern(connection, kind)
    lock_recordings(connection, ids)


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
