"""The whole trajectories of many recordings, by few statements.

Targets are averaged over seeds, of which a rate may have hundreds. Each read on its own would take
five statements.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np
import sqlalchemy as sa

from flerm_core.errors import DataLoss, NotFound
from flerm_core.records.packing import unpack
from flerm_core.records.recording import ParameterList, Recording
from flerm_core.trajectory import Trajectory
from flerm_server.store.sql.compiled_statements import Driver, PreparedIn
from flerm_server.store.sql.mappers import parameters_from_row
from flerm_server.store.sql.tables import attempts, measurements, parameter_lists, recordings

IDS_AT_ONCE = 256
BYTES_AT_ONCE = 4 << 20  # of the values of one statement, unless one recording has more

_ATTEMPTS = PreparedIn(
    sa.select(
        recordings.c.id,
        recordings.c.parameters_key,
        attempts.c.key,
        attempts.c.resume_at,
        attempts.c.visible_below,
    )
    .join_from(recordings, attempts)
    # The visible ranges of attempts do not overlap: ordered by `resume_at`, their steps ascend.
    .order_by(attempts.c.resume_at),
    recordings.c.id,
)
_PARAMETERS = PreparedIn(
    sa.select(parameter_lists.c.key, sa.cast(parameter_lists.c.content, sa.Text)),
    parameter_lists.c.key,
)
_ROWS = PreparedIn(
    sa.select(
        measurements.c.attempt_key,
        measurements.c.step,
        measurements.c.fslr,
        measurements.c.loss,
        measurements.c.learning_rate,
        measurements.c.tokens,
    ).order_by(measurements.c.attempt_key, measurements.c.step),
    measurements.c.attempt_key,
)

Visible = tuple[int, int, int]
"""An attempt: its key, its first step, and the step below which its rows are visible."""
Row = tuple[int, bytes, float | None, float | None, int | None]
"""Step, FSLRs, loss, learning rate, tokens."""


def read_trajectories(driver: Driver, wanted: Sequence[Recording]) -> list[Trajectory]:
    """See `Store.trajectories`."""
    found: dict[str, Trajectory] = {}
    lists: dict[int, ParameterList] = {}
    for part in _parts(wanted):
        its_attempts: dict[str, list[Visible]] = {}
        list_of: dict[str, int] = {}
        for identity, list_key, *attempt in _ATTEMPTS.all(driver, [each.spec.id for each in part]):
            its_attempts.setdefault(identity, []).append((attempt[0], attempt[1], attempt[2]))
            list_of[identity] = list_key
        unread = sorted(set(list_of.values()) - lists.keys())
        for key, content in _PARAMETERS.all(driver, unread) if unread else ():
            lists[key] = parameters_from_row(json.loads(content))
        keys = [key for each in its_attempts.values() for key, _, _ in each]
        rows: dict[int, list[Row]] = {}
        for key, *row in _ROWS.all(driver, keys) if keys else ():
            rows.setdefault(key, []).append((row[0], row[1], row[2], row[3], row[4]))
        for each in part:
            identity = each.spec.id
            if identity not in its_attempts:
                raise NotFound(f"recording {identity} was deleted while it was read")
            visible = [
                row
                for key, first, below in its_attempts[identity]
                for row in rows.get(key, ())
                if first <= row[0] < below
            ]
            found[identity] = _trajectory(identity, lists[list_of[identity]], visible)
    return [found[each.spec.id] for each in wanted]


def _parts(wanted: Sequence[Recording]) -> Iterator[list[Recording]]:
    """Recordings of few bytes together."""
    part: list[Recording] = []
    size = 0
    for each in wanted:
        its = 4 * each.rows * each.parameter_count
        if part and (len(part) == IDS_AT_ONCE or size + its > BYTES_AT_ONCE):
            yield part
            part, size = [], 0
        part.append(each)
        size += its
    if part:
        yield part


def _trajectory(identity: str, parameters: ParameterList, rows: Sequence[Row]) -> Trajectory:
    width = len(parameters)
    data = b"".join(row[1] for row in rows)
    if len(data) != 4 * width * len(rows):
        raise DataLoss(f"recording {identity}: its rows do not have {width} values each")
    steps, _, losses, rates, tokens = zip(*rows, strict=True) if rows else ((),) * 5
    return Trajectory(
        parameters.names,
        parameters.shapes,
        np.array(steps, np.int64),
        unpack(data, width).reshape(len(rows), width),
        bands=parameters.bands,
        losses=np.array(losses, np.float64),  # None becomes NaN
        learning_rates=np.array(rates, np.float64),
        tokens=np.array([-1 if count is None else count for count in tokens], np.int64),
    )
