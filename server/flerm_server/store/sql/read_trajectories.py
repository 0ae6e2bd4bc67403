"""The whole trajectories of many recordings, by few statements.

Targets are averaged over seeds, of which a rate may have hundreds. Each read on its own would take
five statements.
"""

from __future__ import annotations

import json
import math
from array import array
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
BYTES_AT_ONCE = 4 << 20  # of the values of one statement

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


def is_short(recording: Recording) -> bool:
    """Whether one statement may find all values of a recording."""
    return _size(recording) <= BYTES_AT_ONCE


def read_trajectories(driver: Driver, wanted: Sequence[Recording]) -> list[Trajectory]:
    """The trajectories of short recordings (`is_short`). See `Store.trajectories`."""
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
        visible = {key: range(*its) for each in its_attempts.values() for key, *its in each}
        rows = {key: _Rows() for key in visible}
        for key, step, *row in _ROWS.each(driver, list(visible)) if visible else ():
            if step in visible[key]:
                rows[key].add(step, *row)
        for each in part:
            identity = each.spec.id
            if identity not in its_attempts:
                raise NotFound(f"recording {identity} was deleted while it was read")
            its_rows = [rows.pop(key) for key, _, _ in its_attempts[identity]]
            found[identity] = _trajectory(identity, lists[list_of[identity]], its_rows)
    return [found[each.spec.id] for each in wanted]


def _parts(wanted: Sequence[Recording]) -> Iterator[list[Recording]]:
    """Recordings of few bytes together."""
    part: list[Recording] = []
    size = 0
    for each in wanted:
        its = _size(each)
        if part and (len(part) == IDS_AT_ONCE or size + its > BYTES_AT_ONCE):
            yield part
            part, size = [], 0
        part.append(each)
        size += its
    if part:
        yield part


def _size(recording: Recording) -> int:
    """The bytes of its values."""
    return 4 * recording.rows * recording.parameter_count


class _Rows:
    """The visible rows of one attempt, as columns. The FSLRs of a row are copied as the row comes,
    so that they are in memory once.
    """

    def __init__(self) -> None:
        self.fslr = bytearray()
        self.steps = array("q")
        self.losses, self.rates = array("d"), array("d")
        self.tokens = array("q")

    def add(
        self, step: int, fslr: bytes, loss: float | None, rate: float | None, tokens: int | None
    ) -> None:
        """Adds a row. What was not logged becomes NaN, and -1 for tokens."""
        self.fslr += fslr
        self.steps.append(step)
        self.losses.append(math.nan if loss is None else loss)
        self.rates.append(math.nan if rate is None else rate)
        self.tokens.append(-1 if tokens is None else tokens)


def _trajectory(identity: str, parameters: ParameterList, parts: Sequence[_Rows]) -> Trajectory:
    """The trajectory of a recording, from the rows of its attempts."""
    width, count = len(parameters), sum(len(each.steps) for each in parts)
    # Most recordings have one attempt, whose bytes need no copy.
    data = parts[0].fslr if len(parts) == 1 else b"".join(each.fslr for each in parts)
    if len(data) != 4 * width * count:
        raise DataLoss(f"recording {identity}: its rows do not have {width} values each")

    def column(name: str, dtype: type[np.generic]) -> np.ndarray:
        return np.concatenate([np.empty(0, dtype), *(getattr(each, name) for each in parts)])

    return Trajectory(
        parameters.names,
        parameters.shapes,
        column("steps", np.int64),
        unpack(data, width).reshape(count, width),
        bands=parameters.bands,
        losses=column("losses", np.float64),
        learning_rates=column("rates", np.float64),
        tokens=column("tokens", np.int64),
    )
