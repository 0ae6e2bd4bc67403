"""The conversion of queries and their answers: targets, best rates, trajectories.

The rows of targets and trajectories are sent in several messages, each with at most
`MAX_CHUNK_BYTES` of values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np

from flerm_core.errors import DataLoss
from flerm_core.matching.targets import Targets, targets_digest
from flerm_core.records.auxiliary import AuxiliaryColumns
from flerm_core.records.packing import pack, unpack
from flerm_core.records.queries import BestQuery, TargetQuery, TrajectoryQuery
from flerm_core.records.recording import Recording
from flerm_core.trajectory import Trajectory
from flerm_core.tuning.best_lr import Best, LossPoint
from flerm_proto.fields import MessageCodec
from flerm_proto.recording_messages import ESTIMATOR, parameters_from_proto, recording_from_proto
from flerm_proto.v1 import registry_pb2 as pb

MAX_CHUNK_BYTES = 1 << 20

Chunk = TypeVar("Chunk", pb.TargetsChunk, pb.TrajectoryChunk)


TARGET_QUERY = MessageCodec(
    TargetQuery, pb.GetTargetsRequest, parts=[ESTIMATOR], empty_is_default=True
)
TRAJECTORY_QUERY = MessageCodec(
    TrajectoryQuery, pb.GetTrajectoryRequest, message_only=["auxiliary"], empty_is_default=True
)
BEST_QUERY = MessageCodec(BestQuery, pb.GetBestRequest, empty_is_default=True)
LOSS_POINT = MessageCodec(LossPoint, pb.LossPoint)
BEST = MessageCodec(Best, pb.Best, parts=[LOSS_POINT])
TARGETS_HEADER = MessageCodec(
    Targets,
    pb.TargetsHeader,
    parts=[ESTIMATOR],
    value_only=["steps", "table", "spread", "tokens"],
)

target_query_to_proto, target_query_from_proto = TARGET_QUERY.to_proto, TARGET_QUERY.from_proto
trajectory_query_to_proto = TRAJECTORY_QUERY.to_proto
trajectory_query_from_proto = TRAJECTORY_QUERY.from_proto
best_query_to_proto, best_query_from_proto = BEST_QUERY.to_proto, BEST_QUERY.from_proto
best_to_proto, best_from_proto = BEST.to_proto, BEST.from_proto


def targets_to_proto(targets: Targets) -> Iterator[pb.TargetsChunk]:
    """Targets as messages: the header, then the rows in parts of at most `MAX_CHUNK_BYTES`."""
    yield pb.TargetsChunk(header=TARGETS_HEADER.to_proto(targets))
    for part in _slices(len(targets.steps), 8 * len(targets.names) + 16):
        yield pb.TargetsChunk(
            rows=pb.TargetsRows(
                steps=targets.steps[part].tolist(),
                values=pack(targets.table[part]),
                spread=pack(targets.spread[part]),
                tokens=targets.tokens[part].tolist(),
            )
        )


def targets_from_proto(chunks: Iterable[pb.TargetsChunk]) -> Targets:
    """Targets from their messages.

    Raises `DataLoss` where the header is missing, and where the digest of the rows that arrived is
    not the header's.
    """
    first, rest = _header(chunks)
    header = first.header
    columns = len(header.names)
    parts = [chunk.rows for chunk in rest]
    steps = np.array([step for rows in parts for step in rows.steps], np.int64)
    table = _stack([rows.values for rows in parts], columns)
    names = tuple(header.names)
    if table.shape != (len(steps), columns) or targets_digest(names, steps, table) != header.digest:
        raise DataLoss(
            f"targets of {header.family!r}: the digest of the rows that arrived is not "
            f"{header.digest!r}, the digest that was sent"
        )
    return TARGETS_HEADER.from_proto(
        header,
        steps=steps,
        table=table,
        spread=_stack([rows.spread for rows in parts], columns),
        tokens=np.array([tokens for rows in parts for tokens in rows.tokens], np.int64),
    )


def trajectory_from_proto(
    chunks: Iterable[pb.TrajectoryChunk],
) -> tuple[Recording, Trajectory]:
    """A recording without parameters, and its trajectory, from their messages.

    The values are one array, which is filled as messages arrive. Raises `DataLoss` where the header
    is missing, where the columns of a message differ in length, and where the stream has more or
    fewer rows than the header says.
    """
    first, rest = _header(chunks)
    header = first.header
    parameters = parameters_from_proto(header.parameters)
    rows = header.rows
    with _allocating(header):
        values = np.empty((rows, len(parameters)), np.float32)
        steps, tokens = np.empty(rows, np.int64), np.empty(rows, np.int64)
        losses, rates = np.empty(rows), np.empty(rows)
    at = 0
    for chunk in rest:
        part = chunk.rows
        batch = (
            unpack(part.values, len(parameters))
            if parameters.names
            else np.empty((len(part.steps), 0), np.float32)
        )
        columns = (batch, part.steps, part.losses, part.learning_rates, part.tokens)
        end = at + len(batch)
        if len({len(column) for column in columns}) > 1 or end > rows:
            raise DataLoss(
                f"trajectory of {header.recording.spec.id}: "
                f"rows {at} to {end} of {rows} do not fit together"
            )
        values[at:end], steps[at:end], tokens[at:end] = batch, part.steps, part.tokens
        losses[at:end], rates[at:end] = part.losses, part.learning_rates
        at = end
    _check_rows(header, at)
    trajectory = Trajectory(
        parameters.names,
        parameters.shapes,
        steps,
        values,
        bands=parameters.bands,
        losses=losses,
        learning_rates=rates,
        tokens=tokens,
    )
    return recording_from_proto(header.recording), trajectory


@contextmanager
def _allocating(header: pb.TrajectoryHeader) -> Iterator[None]:
    """Raises `DataLoss` where memory for the rows that `header` announces cannot be allocated."""
    try:
        yield
    except (ValueError, MemoryError) as error:
        raise DataLoss(
            f"trajectory of {header.recording.spec.id}: its header says that it has "
            f"{header.rows} rows of {len(header.parameters.names)} values, which no memory holds"
        ) from error


def auxiliary_from_proto(chunks: Iterable[pb.TrajectoryChunk]) -> AuxiliaryColumns:
    """The auxiliary scalars and vectors of a trajectory that was asked for with `auxiliary`.

    Raises `DataLoss` where the header is missing, or where the stream has more or fewer rows than
    the header says.
    """
    first, rest = _header(chunks)
    header = first.header
    rows, width = header.rows, len(header.parameters.names)
    with _allocating(header):
        found = AuxiliaryColumns(np.empty(rows, np.int64), {}, {})
    at = 0
    for chunk in rest:
        part = chunk.rows
        end = at + len(part.steps)
        if end > rows:
            raise DataLoss(
                f"trajectory of {header.recording.spec.id}: "
                f"the stream holds more than its {rows} rows"
            )
        found.steps[at:end] = part.steps
        for name, column in part.scalars.items():
            found.scalars.setdefault(name, np.full(rows, np.nan))[at:end] = column.values
        for name, data in part.vectors.items():
            if name not in found.vectors:
                found.vectors[name] = np.full((rows, width), np.nan, np.float32)
            found.vectors[name][at:end] = unpack(data, width)
        at = end
    _check_rows(header, at)
    return found


def _check_rows(header: pb.TrajectoryHeader, rows: int) -> None:
    if rows != header.rows:
        raise DataLoss(
            f"trajectory of {header.recording.spec.id}: "
            f"the stream ended after {rows} of {header.rows} rows"
        )


def _slices(rows: int, row_bytes: int) -> Iterator[slice]:
    """Slices of rows whose values stay within `MAX_CHUNK_BYTES`, of at least one row each."""
    size = max(1, MAX_CHUNK_BYTES // row_bytes)
    for start in range(0, rows, size):
        yield slice(start, start + size)


def _header(chunks: Iterable[Chunk]) -> tuple[Chunk, Iterator[Chunk]]:
    stream = iter(chunks)
    first = next(stream, None)
    if first is None or first.WhichOneof("part") != "header":
        raise DataLoss("the stream began without its header")
    return first, stream


def _stack(parts: list[bytes], columns: int) -> np.typing.NDArray[np.float32]:
    return unpack(b"".join(parts), columns)
