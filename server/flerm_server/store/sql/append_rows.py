"""Storing rows: many batches in one transaction, each stored or refused on its own.

What makes it fast: rows stay columns, so that no object is made of each. Two statements read the
state of all recordings that the batches name; the first locks them. A row whose step is above all
steps of its attempt cannot have been stored before, so nothing is looked up for it. Three
statements write, on the driver's own cursor (see `compiled_statements`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import sqlalchemy as sa

from flerm_core.errors import AlreadyExists, FlermError, InvalidInput, NotFound
from flerm_core.records.measurement_validation import validate_batch
from flerm_core.records.recording import FINAL_STATUSES
from flerm_server.store.auxiliary_codec import encode
from flerm_server.store.interface import Appended, Batch
from flerm_server.store.sql.compiled_statements import (
    Driver,
    InsertMany,
    Prepared,
    PreparedIn,
    Statement,
)
from flerm_server.store.sql.finish_attempt import require_acknowledged
from flerm_server.store.sql.start_recording import attempt_ended
from flerm_server.store.sql.tables import attempts, measurements, recordings

COLUMNS = (
    "attempt_key", "step", "fslr", "loss", "learning_rate", "tokens", "extra", "measured_at",
    "committed_at",
)  # fmt: skip
STEP, TOKENS = COLUMNS.index("step"), COLUMNS.index("tokens")
# The columns that must be equal when a step is sent again.
CONTENT = COLUMNS[2:7]

Row = tuple[Any, ...]
"""One row, with its values in the order of `COLUMNS`."""

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
    .order_by(
        recordings.c.key
    )  # all servers lock in one order, so that they never wait for each other
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
    ).join(recordings),
    recordings.c.id,
)
_STORED = Prepared(
    sa.select(measurements.c.step, *(measurements.c[name] for name in CONTENT)).where(
        measurements.c.attempt_key == sa.bindparam("attempt"),
        measurements.c.step.between(sa.bindparam("first"), sa.bindparam("last")),
    )
)
_INSERT = InsertMany(measurements, COLUMNS)
_UPDATE_ATTEMPT = Prepared(
    attempts.update()
    .where(attempts.c.key == sa.bindparam("attempt"))
    .values(last_step=sa.bindparam("greatest"))
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
            (recordings.c.attempt == sa.bindparam("number"), sa.bindparam("lease")),
            else_=recordings.c.lease_until,
        ),
    )
)


@dataclass(slots=True)
class _Recording:
    """A recording's state within the transaction."""

    key: int
    columns: int
    latest: int
    rows: int
    first_step: int
    last_step: int
    tokens: int | None
    # The number of the attempt that a batch named, 0 for none; the latest attempt if any named it.
    written: int = 0
    attempts: dict[int, _Attempt] = field(default_factory=dict)

    def add(self, rows: Sequence[Row]) -> None:
        """Counts new visible rows, ascending by step and at least one."""
        first, last = rows[0][STEP], rows[-1][STEP]
        if not self.rows or last >= self.last_step:
            seen = (
                row[TOKENS]
                for row in reversed(rows)
                if row[TOKENS] is not None and row[STEP] >= self.last_step
            )
            self.tokens = next(seen, self.tokens)
        self.first_step = first if not self.rows else min(self.first_step, first)
        self.last_step = last if not self.rows else max(self.last_step, last)
        self.rows += len(rows)


@dataclass(slots=True)
class _Attempt:
    key: int
    resume_at: int
    status: str
    visible_below: int
    last_step: int  # the greatest of the rows stored before this transaction
    pending: list[Row] = field(default_factory=list)  # rows that this transaction stores
    highest: int = -1  # the greatest step of stored and pending rows

    def __post_init__(self) -> None:
        self.highest = self.last_step


def append(
    driver: Driver, batches: Sequence[Batch], now: int, lease_until: int
) -> list[Appended | FlermError]:
    """Stores `batches` within the caller's transaction; see `Store.append_many`.

    driver: of a transaction that began with what `state_of` asks.
    now, lease_until: the database's time and the end of a renewed lease, in microseconds.
    """
    states = _states(driver)
    answers: list[Appended | FlermError] = []
    for batch in batches:
        try:
            answers.append(_plan(driver, states, batch, now))
        except FlermError as error:
            answers.append(error)
    _write(driver, states, now, lease_until)
    return answers


def state_of(dialect: sa.Dialect, batches: Sequence[Batch]) -> list[Statement]:
    """What to ask first in the transaction of `append`: it locks the recordings of `batches`, and
    reads their state.
    """
    ids = list({batch.recording_id for batch in batches})
    # Attempts by a statement of their own, so that it sees what others committed while the first
    # one waited for its locks.
    return [_LOCK.of(dialect, ids), _ATTEMPTS.of(dialect, ids)]


def _states(driver: Driver) -> dict[str, _Recording]:
    """The recordings that `state_of` found, by id."""
    found, its_attempts = driver.answers[:2]
    states = {row[1]: _Recording(row[0], *row[2:]) for row in found}
    by_key = {state.key: state for state in states.values()}
    for recording_key, number, *attempt in its_attempts:
        # A recording that was made since the first statement looked is not locked.
        if recording_key in by_key:
            by_key[recording_key].attempts[number] = _Attempt(*attempt)
    return states


def _plan(driver: Driver, states: dict[str, _Recording], batch: Batch, now: int) -> Appended:
    """Checks one batch and adds its new rows to those that `_write` stores. Raises its refusal."""
    state = states.get(batch.recording_id)
    if state is None:
        raise NotFound(
            f"recording {batch.recording_id!r} is not in this registry: "
            "start it before appending to it"
        )
    number = batch.attempt or state.latest
    attempt = state.attempts.get(number)
    if attempt is None:
        raise NotFound(
            f"recording {batch.recording_id} has no attempt {number}; "
            f"it has {sorted(state.attempts)}"
        )
    require_acknowledged(batch.recording_id, number, attempt.highest, batch.acknowledged_step)
    steps = batch.rows.steps
    validate_batch(batch.rows, state.columns)
    if not steps:
        return Appended(0, 0)
    if steps[0] < attempt.resume_at:
        raise InvalidInput(
            f"step {steps[0]} of recording {batch.recording_id}: "
            f"attempt {number} owns steps from {attempt.resume_at} on only"
        )
    rows = _rows(batch, attempt.key, now)
    stored = _stored(driver, attempt, rows) if steps[0] <= attempt.highest else {}
    if stored:
        _refuse_other_content(rows, stored, batch, number)
        rows = [row for row in rows if row[STEP] not in stored]
    if rows:
        if attempt.status in FINAL_STATUSES:
            raise attempt_ended(batch.recording_id, number, attempt.status)
        attempt.pending += rows
        attempt.highest = max(attempt.highest, rows[-1][STEP])
        visible = rows[: bisect_left(rows, attempt.visible_below, key=lambda row: row[STEP])]
        if visible:
            state.add(visible)
    if state.written != state.latest:
        state.written = number
    return Appended(len(steps), len(stored))


def _rows(batch: Batch, attempt_key: int, now: int) -> list[Row]:
    block = batch.rows
    columns = (
        block.steps,
        block.fslr,
        block.losses,
        block.learning_rates,
        block.tokens,
        map(encode, block.auxiliary),
        block.measured_at,
    )
    return list(zip(repeat(attempt_key), *columns, repeat(now)))


def _stored(driver: Driver, attempt: _Attempt, rows: Sequence[Row]) -> dict[int, Row]:
    """The content, by step, of those of `rows` that are stored or that this transaction stores."""
    wanted = {row[STEP] for row in rows}
    known = {row[STEP]: row[2:7] for row in attempt.pending if row[STEP] in wanted}
    old = [step for step in wanted if step <= attempt.last_step and step not in known]
    if old:
        span = {"attempt": attempt.key, "first": min(old), "last": max(old)}
        known |= {
            step: tuple(content) for step, *content in _STORED.all(driver, span) if step in wanted
        }
    return known


def _refuse_other_content(
    rows: Sequence[Row], stored: dict[int, Row], batch: Batch, number: int
) -> None:
    """Raises `AlreadyExists` for a row whose step is stored with other content."""
    for row in rows:
        known = stored.get(row[STEP])
        if known is not None and known != row[2:7]:
            differing = [
                name for name, new, old in zip(CONTENT, row[2:7], known, strict=True) if new != old
            ]
            raise AlreadyExists(
                f"step {row[STEP]} of recording {batch.recording_id}, attempt {number}, "
                f"is stored with other content ({', '.join(differing)})"
            )


def _write(driver: Driver, states: dict[str, _Recording], now: int, lease_until: int) -> None:
    """Stores the planned rows and the new state of attempts and recordings, with the commit."""
    written = [state for state in states.values() if state.written]
    changed = [
        attempt for state in written for attempt in state.attempts.values() if attempt.pending
    ]
    if changed:
        rows = (
            changed[0].pending
            if len(changed) == 1
            else [row for each in changed for row in each.pending]
        )
        _INSERT.run(driver, rows)
    driver.last += [
        _UPDATE_ATTEMPT.of(driver.dialect, {"attempt": each.key, "greatest": each.highest})
        for each in changed
    ]
    driver.last += [
        _UPDATE_RECORDING.of(
            driver.dialect,
            {
                "recording": state.key,
                "count": state.rows,
                "first": state.first_step,
                "last": state.last_step,
                "seen": state.tokens,
                "now": now,
                "number": state.written,
                "lease": lease_until,
            },
        )
        for state in written
    ]
