"""Storing rows: many batches, one transaction, each stored or refused on its own.

The ways to be fast: two statements read the state of all recordings concerned (the first locks them); a row above everything
its attempt has cannot have been sent before, so nothing is looked up for it; three executemany write,
all on the driver's own cursor (see `prepared`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from flerm_core import limits
from flerm_core.errors import AlreadyExists, FlermError, InvalidInput, NotFound
from flerm_core.packing import pack
from flerm_core.recording import Measurement
from flerm_server.store.base import Appended, Batch
from flerm_server.store.engine import moment_to
from flerm_server.store.extra import encode
from flerm_server.store.prepared import Prepared, PreparedIn
from flerm_server.store.starts import closed, refuse_closed
from flerm_server.store.tables import attempts, measurements, recordings

CONTENT = ("fslr", "loss", "learning_rate", "tokens", "extra")

_LOCK = PreparedIn(
    sa.select(
        recordings.c.key,
        recordings.c.id,
        recordings.c.parameter_count,
        recordings.c.attempt,
        recordings.c.rows,
        recordings.c.first_step,
        recordings.c.last_step,
        recordings.c.tokens,
    )
    .order_by(recordings.c.key)  # every server locks in one order: no deadlock
    .with_for_update(),
    recordings.c.id,
)
_ATTEMPTS = PreparedIn(
    sa.select(
        attempts.c.recording_key,
        attempts.c.number,
        attempts.c.key,
        attempts.c.resume_at,
        attempts.c.status,
        attempts.c.visible_below,
        attempts.c.last_step,
    ),
    attempts.c.recording_key,
)
_STORED = Prepared(
    sa.select(measurements.c.step, *(measurements.c[name] for name in CONTENT)).where(
        measurements.c.attempt_key == sa.bindparam("attempt"),
        measurements.c.step.between(sa.bindparam("first"), sa.bindparam("last")),
    )
)
_INSERT = Prepared(measurements.insert(), measurements.c.keys())
_UPDATE_ATTEMPT = Prepared(
    attempts.update().where(attempts.c.key == sa.bindparam("attempt")).values(last_step=sa.bindparam("greatest"))
)
_UPDATE_RECORDING = Prepared(
    recordings.update()
    .where(recordings.c.key == sa.bindparam("recording"))
    .values(
        rows=sa.bindparam("count"),
        first_step=sa.bindparam("first"),
        last_step=sa.bindparam("last"),
        tokens=sa.bindparam("seen"),
        updated_at=sa.bindparam("now"),
        lease_until=sa.case(
            (recordings.c.attempt == sa.bindparam("number"), sa.bindparam("lease")), else_=recordings.c.lease_until
        ),
    )
)


@dataclass(slots=True)
class _Recording:
    """A recording's state while the transaction goes on."""

    key: int
    columns: int
    latest: int
    rows: int
    first_step: int
    last_step: int
    tokens: int | None
    touched: int = 0  # the attempt that got rows, the latest of them if it did
    attempts: dict[int, _Attempt] = field(default_factory=dict)

    def add(self, step: int, tokens: int | None) -> None:
        """Counts one visible row."""
        self.first_step = step if not self.rows else min(self.first_step, step)
        if not self.rows or step >= self.last_step:
            self.last_step = step
            self.tokens = self.tokens if tokens is None else tokens
        self.rows += 1


@dataclass(slots=True)
class _Attempt:
    key: int
    resume_at: int
    status: str
    visible_below: int
    last_step: int
    pending: dict[int, dict[str, Any]] = field(default_factory=dict)  # rows of this transaction by step


def append(connection: sa.Connection, batches: Sequence[Batch], now: int, lease_until: int) -> list[Appended | FlermError]:
    """Stores `batches` within the caller's transaction; the answer at i is that of batch i."""
    states = _load(connection, {batch.recording_id for batch in batches})
    answers: list[Appended | FlermError] = []
    for batch in batches:
        try:
            answers.append(_take(connection, states, batch, now))
        except FlermError as error:
            answers.append(error)
    _write(connection, states, now, lease_until)
    return answers


def _load(connection: sa.Connection, ids: set[str]) -> dict[str, _Recording]:
    states = {row[1]: _Recording(row[0], *row[2:]) for row in _LOCK.all(connection, list(ids))}
    by_key = {state.key: state for state in states.values()}
    if by_key:
        # A statement of its own: it sees what was committed while the first waited for its locks.
        for recording_key, number, *attempt in _ATTEMPTS.all(connection, list(by_key)):
            by_key[recording_key].attempts[number] = _Attempt(*attempt)
    return states


def _take(connection: sa.Connection, states: dict[str, _Recording], batch: Batch, now: int) -> Appended:
    """Checks one batch and, all of it being right, plans its rows."""
    state = states.get(batch.recording_id)
    if state is None:
        raise NotFound(f"recording {batch.recording_id!r} is not in this registry: start it before appending to it")
    number = batch.attempt or state.latest
    attempt = state.attempts.get(number)
    if attempt is None:
        raise NotFound(f"recording {batch.recording_id} has no attempt {number}; it has {sorted(state.attempts)}")
    limits.validate_measurements(batch.rows, state.columns)
    if not batch.rows:
        return Appended(0, 0)
    first = min(row.step for row in batch.rows)
    if first < attempt.resume_at:
        raise InvalidInput(
            f"step {first} of recording {batch.recording_id}: attempt {number} owns steps from {attempt.resume_at} on only"
        )
    rows = {row.step: _columns(row, attempt.key, now) for row in batch.rows}
    stored = _stored(connection, attempt, rows)
    for step, there in stored.items():
        differing = [name for name in CONTENT if rows[step][name] != there[name]]
        if differing:
            raise AlreadyExists(
                f"step {step} of recording {batch.recording_id}, attempt {number}, "
                f"is stored with other content ({', '.join(differing)})"
            )
    fresh = {step: row for step, row in rows.items() if step not in stored}
    if fresh and closed(attempt.status):
        raise refuse_closed(batch.recording_id, number, attempt.status)
    for step, row in fresh.items():
        attempt.pending[step] = row
        if step < attempt.visible_below:
            state.add(step, row["tokens"])
    if state.touched != state.latest:
        state.touched = number
    return Appended(len(rows), len(stored))


def _columns(row: Measurement, attempt_key: int, now: int) -> dict[str, Any]:
    return {
        "attempt_key": attempt_key,
        "step": row.step,
        "fslr": pack(row.values),
        "loss": row.loss,
        "learning_rate": row.learning_rate,
        "tokens": row.tokens,
        "measured_at": None if row.measured_at is None else moment_to(row.measured_at),
        "committed_at": now,
        "extra": encode(row.scalars, row.vectors),
    }


def _stored(connection: sa.Connection, attempt: _Attempt, rows: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Those of `rows` that are there already: in the database or earlier in this transaction."""
    there = {step: attempt.pending[step] for step in rows if step in attempt.pending}
    old = [step for step in rows if step <= attempt.last_step and step not in there]
    if old:
        span = {"attempt": attempt.key, "first": min(old), "last": max(old)}
        wanted = set(old)
        for step, *content in _STORED.all(connection, span):
            if step in wanted:
                there[step] = dict(zip(CONTENT, content, strict=True))
    return there


def _write(connection: sa.Connection, states: dict[str, _Recording], now: int, lease_until: int) -> None:
    touched = [state for state in states.values() if state.touched]
    changed = [attempt for state in touched for attempt in state.attempts.values() if attempt.pending]
    rows = [row for attempt in changed for row in attempt.pending.values()]
    if rows:
        _INSERT.run(connection, rows)
        _UPDATE_ATTEMPT.run(connection, [{"attempt": a.key, "greatest": max(a.last_step, *a.pending)} for a in changed])
    if touched:
        _UPDATE_RECORDING.run(
            connection,
            [
                {
                    "recording": state.key,
                    "count": state.rows,
                    "first": state.first_step,
                    "last": state.last_step,
                    "seen": state.tokens,
                    "now": now,
                    "number": state.touched,
                    "lease": lease_until,
                }
                for state in touched
            ],
        )
