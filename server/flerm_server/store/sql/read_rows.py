"""Selecting the visible rows of a recording, and reading them in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from flerm_core._arrays import thin
from flerm_core.errors import DataLoss, NotFound
from flerm_core.records.packing import unpack
from flerm_server.store.interface import CHUNK_BYTES, Rows, Segment, Selection
from flerm_server.store.sql.compiled_statements import Driver, Prepared, PreparedIn
from flerm_server.store.sql.listings import one_recording
from flerm_server.store.sql.tables import NEVER, attempts, measurements

# Step, loss, learning rate and tokens of a row on the wire. Where one tensor is read, they are more
# than its values.
ROW_BYTES = 40
STEPS_PER_STATEMENT = 512

_ROWS = sa.select(
    measurements.c.step,
    measurements.c.fslr,
    measurements.c.loss,
    measurements.c.learning_rate,
    measurements.c.tokens,
    measurements.c.extra,
).where(measurements.c.attempt_key == sa.bindparam("attempt"))
_ROWS_BETWEEN = Prepared(
    _ROWS.where(measurements.c.step.between(sa.bindparam("first"), sa.bindparam("last"))).order_by(
        measurements.c.step
    )
)
_ROWS_AT = PreparedIn(_ROWS.order_by(measurements.c.step), measurements.c.step)


def select(
    connection: sa.Connection,
    recording_id: str,
    first: int | None,
    last: int | None,
    max_points: int,
    now: int,
) -> Selection:
    """See `Store.select`.

    first, last: the steps between which to select, both included (None: no limit).
    max_points: at most as many rows, evenly thinned (0: all).
    now: the database's time in microseconds.
    """
    key, recording = one_recording(connection, recording_id, now)
    lower, upper = (0 if first is None else first), (NEVER if last is None else last)
    parts: list[NDArray[np.int64]] = []
    segments: list[Segment] = []
    # The visible ranges of attempts do not overlap: ordered by `resume_at`, their steps ascend.
    query = sa.select(attempts.c.key, attempts.c.resume_at, attempts.c.visible_below).where(
        attempts.c.recording_key == key
    )
    for attempt in connection.execute(query.order_by(attempts.c.resume_at)).all():
        start, stop = max(attempt.resume_at, lower), min(attempt.visible_below - 1, upper)
        if start > stop:
            continue
        steps = connection.execute(
            sa.select(measurements.c.step)
            .where(
                measurements.c.attempt_key == attempt.key, measurements.c.step.between(start, stop)
            )
            .order_by(measurements.c.step)
        ).scalars()
        found = np.fromiter(steps, np.int64)
        if len(found):
            parts.append(found)
            segments.append(Segment(attempt.key, int(found[0]), int(found[-1])))
    selected = np.concatenate(parts) if parts else np.empty(0, np.int64)
    if max_points:
        selected = selected[thin(len(selected), max_points)]
    return Selection(recording, selected, tuple(segments))


def chunks(
    selection: Selection, columns: Sequence[int] | None
) -> Iterator[tuple[Segment, NDArray[np.int64]]]:
    """The selection's steps in chunks of at most `CHUNK_BYTES`, each within one segment."""
    width = selection.recording.parameter_count if columns is None else len(columns)
    height = max(1, CHUNK_BYTES // (4 * width + ROW_BYTES))
    for segment in selection.segments:
        steps = selection.steps[
            (selection.steps >= segment.first) & (selection.steps <= segment.last)
        ]
        for start in range(0, len(steps), height):
            yield segment, steps[start : start + height]


def read_chunk(
    driver: Driver,
    selection: Selection,
    segment: Segment,
    steps: NDArray[np.int64],
    columns: Sequence[int] | None,
) -> Rows:
    """The rows of `segment` at `steps` (int64 [T], ascending), `columns` of them (None: all).

    Raises `NotFound` when rows were deleted since they were selected, `DataLoss` for damaged bytes.
    """
    found = _fetch(driver, selection, segment, steps.tolist())
    recording, width = selection.recording.spec.id, selection.recording.parameter_count
    if len(found) != len(steps):
        raise NotFound(f"recording {recording} was deleted while it was read")
    _, fslr, losses, rates, tokens, auxiliary = zip(*found, strict=True)
    data = b"".join(fslr)
    if len(data) != 4 * width * len(found):
        raise DataLoss(
            f"recording {recording}: rows from step {steps[0]} on do not have {width} values each"
        )
    values = unpack(data, width).reshape(len(found), width)
    return Rows(
        steps=steps,
        values=values if columns is None else values[:, list(columns)],
        losses=np.array(losses, np.float64),  # None becomes NaN
        learning_rates=np.array(rates, np.float64),
        tokens=np.array([-1 if count is None else count for count in tokens], np.int64),
        auxiliary=auxiliary,
    )


def _fetch(
    driver: Driver, selection: Selection, segment: Segment, steps: list[int]
) -> list[tuple[object, ...]]:
    """The rows of `segment` at `steps`, as the database has them."""
    attempt = {"attempt": segment.attempt_key}
    thinned = len(selection.steps) < selection.recording.rows
    if thinned and steps[-1] - steps[0] >= len(steps):
        # By the steps themselves: a range would read the rows in between only to drop them.
        parts = (
            steps[at : at + STEPS_PER_STATEMENT] for at in range(0, len(steps), STEPS_PER_STATEMENT)
        )
        return [row for part in parts for row in _ROWS_AT.all(driver, part, attempt)]
    found = _ROWS_BETWEEN.all(driver, attempt | {"first": steps[0], "last": steps[-1]})
    if len(found) > len(steps):  # rows in between were stored after the steps were selected
        selected = set(steps)
        found = [row for row in found if row[0] in selected]
    return found
