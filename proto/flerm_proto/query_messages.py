"""Questions and their answers as messages and back: targets, best rates, trajectories.

Streams go in messages of at most 1 MiB of values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np

from flerm_core.errors import DataLoss
from flerm_core.matching.targets import Targets, targets_digest
from flerm_core.records.auxiliary import Auxiliary
from flerm_core.records.packing import pack, unpack
from flerm_core.records.queries import BestQuery, TargetQuery, TrajectoryQuery
from flerm_core.records.recording import Recording
from flerm_core.trajectory import Trajectory
from flerm_core.tuning.best_lr import Best, LossPoint
from flerm_proto.recording_messages import (
    estimator_from,
    estimator_to,
    optional,
    parameters_from,
    recording_from,
    shapes_from,
    shapes_to,
    struct_from,
    struct_to,
)
from flerm_proto.v1 import registry_pb2 as pb

MAX_CHUNK_BYTES = 1 << 20

Chunk = TypeVar("Chunk", pb.TargetsChunk, pb.TrajectoryChunk)


def query_to(query: TargetQuery) -> pb.GetTargetsRequest:
    """A question for targets as a message."""
    return pb.GetTargetsRequest(
        family=query.family,
        lr=query.lr,
        policy=query.policy,
        names=query.names,
        shapes=shapes_to(query.shapes),
        blocks=query.blocks,
        depth=query.depth,
        optimizer=query.optimizer,
        optimizer_config=None
        if query.optimizer_config is None
        else struct_to(query.optimizer_config),
        estimator=None if query.estimator is None else estimator_to(query.estimator),
        tags=query.tags,
        step=query.step,
    )


def query_from(message: pb.GetTargetsRequest) -> TargetQuery:
    """A question for targets from a message; an empty policy is the default."""
    return TargetQuery(
        family=message.family,
        lr=message.lr,
        policy=message.policy or "interpolate",
        names=tuple(message.names),
        shapes=shapes_from(message.shapes),
        blocks=tuple(message.blocks),
        depth=message.depth,
        optimizer=message.optimizer,
        optimizer_config=struct_from(message.optimizer_config)
        if message.HasField("optimizer_config")
        else None,
        estimator=estimator_from(message.estimator) if message.HasField("estimator") else None,
        tags=dict(message.tags),
        step=optional(message, "step"),
    )


def targets_to(targets: Targets) -> Iterator[pb.TargetsChunk]:
    """Targets as a header, then rows in bounded messages."""
    yield pb.TargetsChunk(
        header=pb.TargetsHeader(
            family=targets.family,
            lr=targets.lr,
            policy=targets.policy,
            depth=targets.depth,
            names=targets.names,
            optimizer=targets.optimizer,
            optimizer_config=struct_to(targets.optimizer_config),
            estimator=estimator_to(targets.estimator),
            sources=targets.sources,
            source_learning_rates=targets.source_learning_rates,
            seeds=targets.seeds,
            digest=targets.digest,
            final_step=targets.final_step,
            final_tokens=targets.final_tokens,
        )
    )
    for part in _slices(len(targets.steps), 8 * len(targets.names) + 16):
        yield pb.TargetsChunk(
            rows=pb.TargetsRows(
                steps=targets.steps[part].tolist(),
                values=pack(targets.table[part]),
                spread=pack(targets.spread[part]),
                tokens=targets.tokens[part].tolist(),
            )
        )


def targets_from(chunks: Iterable[pb.TargetsChunk]) -> Targets:
    """Targets from their messages. Raises `DataLoss` when the header is missing or the content has another digest."""
    header_chunk, rest = _header(chunks)
    header = header_chunk.header
    columns = len(header.names)
    parts = [chunk.rows for chunk in rest]
    steps = np.array([step for rows in parts for step in rows.steps], np.int64)
    table = _stack([rows.values for rows in parts], columns)
    names = tuple(header.names)
    if table.shape != (len(steps), columns) or targets_digest(names, steps, table) != header.digest:
        raise DataLoss(
            f"targets of {header.family!r}: what arrived has not the digest {header.digest!r} that was sent"
        )
    return Targets(
        family=header.family,
        lr=header.lr,
        policy=header.policy,
        depth=header.depth,
        names=names,
        steps=steps,
        table=table,
        spread=_stack([rows.spread for rows in parts], columns),
        tokens=np.array([tokens for rows in parts for tokens in rows.tokens], np.int64),
        optimizer=header.optimizer,
        optimizer_config=struct_from(header.optimizer_config),
        estimator=estimator_from(header.estimator),
        sources=tuple(header.sources),
        source_learning_rates=tuple(header.source_learning_rates),
        seeds=header.seeds,
        digest=header.digest,
        final_step=header.final_step,
        final_tokens=optional(header, "final_tokens"),
    )


def best_query_to(query: BestQuery) -> pb.GetBestRequest:
    """A question for the best rate as a message."""
    return pb.GetBestRequest(
        family=query.family,
        role=query.role,
        variant=query.variant,
        optimizer=query.optimizer,
        tags=query.tags,
    )


def best_query_from(message: pb.GetBestRequest) -> BestQuery:
    """A question for the best rate from a message; empty role and variant are base and plain."""
    return BestQuery(
        family=message.family,
        role=message.role or "base",
        variant=message.variant or "plain",
        optimizer=message.optimizer,
        tags=dict(message.tags),
    )


def best_to(best: Best) -> pb.Best:
    """The best rate as a message."""
    return pb.Best(
        family=best.family,
        lr=best.lr,
        loss=best.loss,
        optimum=best.optimum,
        optimum_spread=best.optimum_spread,
        next_lr=best.next_lr,
        advice=best.advice,
        points=[
            pb.LossPoint(
                lr=point.lr,
                loss=point.loss,
                spread=point.spread,
                seeds=point.seeds,
                diverged=point.diverged,
            )
            for point in best.points
        ],
    )


def best_from(message: pb.Best) -> Best:
    """The best rate from a message."""
    return Best(
        family=message.family,
        lr=message.lr,
        loss=message.loss,
        optimum=message.optimum,
        optimum_spread=message.optimum_spread,
        next_lr=message.next_lr,
        advice=message.advice,
        points=tuple(
            LossPoint(
                lr=point.lr,
                loss=point.loss,
                spread=point.spread,
                seeds=point.seeds,
                diverged=point.diverged,
            )
            for point in message.points
        ),
    )


def trajectory_query_from(message: pb.GetTrajectoryRequest) -> TrajectoryQuery:
    """A question for a trajectory from a message."""
    return TrajectoryQuery(
        recording_id=message.recording_id,
        first_step=optional(message, "first_step"),
        last_step=optional(message, "last_step"),
        pattern=message.pattern,
        max_points=message.max_points,
    )


def trajectory_from(chunks: Iterable[pb.TrajectoryChunk]) -> tuple[Recording, Trajectory]:
    """The recording (without parameters) and its trajectory from their messages, in one array that is filled as they arrive.

    Raises `DataLoss` when the header is missing or the stream held more or fewer rows than it said.
    """
    header_chunk, rest = _header(chunks)
    header = header_chunk.header
    parameters = parameters_from(header.parameters)
    rows = header.rows
    values = np.empty((rows, len(parameters)), np.float32)
    steps, tokens = np.empty(rows, np.int64), np.empty(rows, np.int64)
    losses, rates = np.empty(rows), np.empty(rows)
    at = 0
    for chunk in rest:
        part = chunk.rows
        block = (
            unpack(part.values, len(parameters))
            if parameters.names
            else np.empty((len(part.steps), 0), np.float32)
        )
        lengths = {
            len(block),
            len(part.steps),
            len(part.losses),
            len(part.learning_rates),
            len(part.tokens),
        }
        end = at + len(block)
        if len(lengths) > 1 or end > rows:
            raise DataLoss(
                f"trajectory of {header.recording.spec.id}: rows {at} to {end} of {rows} do not fit together"
            )
        values[at:end], steps[at:end], tokens[at:end] = block, part.steps, part.tokens
        losses[at:end], rates[at:end] = part.losses, part.learning_rates
        at = end
    if at != rows:
        raise DataLoss(
            f"trajectory of {header.recording.spec.id}: the stream ended after {at} of {rows} rows"
        )
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
    return recording_from(header.recording), trajectory


def extras_from(chunks: Iterable[pb.TrajectoryChunk]) -> Auxiliary:
    """The further scalars and vectors of a trajectory that was asked for with its extras.

    Raises `DataLoss` when the header is missing or the stream held more or fewer rows than it said.
    """
    header_chunk, rest = _header(chunks)
    rows, width = header_chunk.header.rows, len(header_chunk.header.parameters.names)
    found = Auxiliary(np.empty(rows, np.int64), {}, {})
    at = 0
    for chunk in rest:
        part = chunk.rows
        end = at + len(part.steps)
        if end > rows:
            raise DataLoss(
                f"trajectory of {header_chunk.header.recording.spec.id}: the stream holds more than its {rows} rows"
            )
        found.steps[at:end] = part.steps
        for name, column in part.scalars.items():
            found.scalars.setdefault(name, np.full(rows, np.nan))[at:end] = column.values
        for name, data in part.vectors.items():
            found.vectors.setdefault(name, np.full((rows, width), np.nan, np.float32))[at:end] = (
                unpack(data, width)
            )
        at = end
    if at != rows:
        raise DataLoss(
            f"trajectory of {header_chunk.header.recording.spec.id}: the stream ended after {at} of {rows} rows"
        )
    return found


def _slices(rows: int, row_bytes: int) -> Iterator[slice]:
    """Rows by so many that their values stay within `MAX_CHUNK_BYTES`, at least one each."""
    size = max(1, MAX_CHUNK_BYTES // row_bytes)
    for start in range(0, rows, size):
        yield slice(start, start + size)


def _header(chunks: Iterable[Chunk]) -> tuple[Chunk, Iterator[Chunk]]:
    stream = iter(chunks)
    first = next(stream, None)
    if first is None or first.WhichOneof("part") != "header":
        raise DataLoss("the stream began without its header")
    return first, stream


def _stack(blocks: list[bytes], columns: int) -> np.typing.NDArray[np.float32]:
    return unpack(b"".join(blocks), columns)
