"""Storing rows: many batches, one transaction, each stored or refused on its own.

The ways to be fast: rows stay columns, no object is made for one; two statements read the state of all recordings concerned
(the first locks them); a row above everything its attempt has cannot have been sent before, so nothing is looked up for it;
three statements write, all on the driver's own cursor (see `prepared`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import sqlalchemy as sa

from flerm_core.errors import AlreadyExists, FlermError, InvalidInput, NotFound
from flerm_core.records import validation
from flerm_core.records.recording import FINAL_STATUSES
from flerm_server.store.interface import Appended, Batch
from flerm_server.store.sql.auxiliary_codec import encode
from flerm_server.store.sql.compiled_statements import Driver, InsertMany, Prepared, PreparedIn
from flerm_server.store.sql.start_recording import attempt_ended
from flerm_server.store.sql.tables import attempts, measurements, recordings

COLUMNS = (
    "attempt_key", "step", "fslr", "loss", "learning_rate", "tokens", "extra", "measured_at", "committed_at",
)  # fmt: skip
STEP, TOKENS = COLUMNS.index("step"), COLUMNS.index("tokens")
# What must be equal when a step is sent again.
CONTENT = COLUMNS[2:7]

Row = tuple[Any, ...]
"""One row as `COLUMNS` say."""

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

    def add(self, rows: Sequence[Row]) -> None:
        """Counts visible rows, ascending by step, of which there is at least one."""
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
    last_step: int  # of the rows stored before this transaction
    pending: list[Row] = field(default_factory=list)  # rows of this transaction
    highest: int = -1  # step of all these

    def __post_init__(self) -> None:
        self.highest = self.last_step


def append(
    driver: Driver, batches: Sequence[Batch], now: int, lease_until: int
) -> list[Appended | FlermError]:
    """Stores `batches` within the caller's transaction; the answer at i is that of batch i."""
    states = _load(driver, {batch.recording_id for batch in batches})
    answers: list[Appended | FlermError] = []
    for batch in batches:
        try:
            answers.append(_take(driver, states, batch, now))
        except FlermError as error:
            answers.append(error)
    _write(driver, states, now, lease_until)
    return answers


def _load(driver: Driver, ids: set[str]) -> dict[str, _Recording]:
    states = {row[1]: _Recording(row[0], *row[2:]) for row in _LOCK.all(driver, list(ids))}
    by_key = {state.key: state for state in states.values()}
    if by_key:
        # A statement of its own: it sees what was committed while the first waited for its locks.
        for recording_key, number, *attempt in _ATTEMPTS.all(driver, list(by_key)):
            by_key[recording_key].attempts[number] = _Attempt(*attempt)
    return states


def _take(driver: Driver, states: dict[str, _Recording], batch: Batch, now: int) -> Appended:
    """Checks one batch and, all of it being right, plans its rows."""
    state = states.get(batch.recording_id)
    if state is None:
        raise NotFound(
            f"recording {batch.recording_id!r} is not in this registry: start it before appending to it"
        )
    number = batch.attempt or state.latest
    attempt = state.attempts.get(number)
    if attempt is None:
        raise NotFound(
            f"recording {batch.recording_id} has no attempt {number}; it has {sorted(state.attempts)}"
        )
    steps = batch.rows.steps
    validation.validate_block(batch.rows, state.columns)
    if not steps:
        return Appended(0, 0)
    if steps[0] < attempt.resume_at:
        raise InvalidInput(
            f"step {steps[0]} of recording {batch.recording_id}: attempt {number} owns steps from {attempt.resume_at} on only"
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
    if state.touched != state.latest:
        state.touched = number
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
    """The content of those of `rows` that are there already: in the database or earlier in this transaction."""
    wanted = {row[STEP] for row in rows}
    there = {row[STEP]: row[2:7] for row in attempt.pending if row[STEP] in wanted}
    old = [step for step in wanted if step <= attempt.last_step and step not in there]
    if old:
        span = {"attempt": attempt.key, "first": min(old), "last": max(old)}
        there |= {
            step: tuple(content) for step, *content in _STORED.all(driver, span) if step in wanted
        }
    return there


def _refuse_other_content(
    rows: Sequence[Row], stored: dict[int, Row], batch: Batch, number: int
) -> None:
    for row in rows:
        there = stored.get(row[STEP])
        if there is not None and there != row[2:7]:
            differing = [
                name
                for name, mine, its in zip(CONTENT, row[2:7], there, strict=True)
                if mine != its
            ]
            raise AlreadyExists(
                f"step {row[STEP]} of recording {batch.recording_id}, attempt {number}, "
                f"is stored with other content ({', '.join(differing)})"
            )


def _write(driver: Driver, states: dict[str, _Recording], now: int, lease_until: int) -> None:
    touched = [state for state in states.values() if state.touched]
    changed = [
        attempt for state in touched for attempt in state.attempts.values() if attempt.pending
    ]
    if changed:
        _INSERT.run(
            driver,
            changed[0].pending
            if len(changed) == 1
            else [row for each in changed for row in each.pending],
        )
        _UPDATE_ATTEMPT.run(
            driver, [{"attempt": each.key, "greatest": each.highest} for each in changed]
        )
    if touched:
        _UPDATE_RECORDING.run(
            driver,
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
