"""Rows of the tables as core values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from flerm_core.records.recording import (
    EstimatorSettings,
    Family,
    ParameterList,
    Recording,
    RecordingSpec,
)
from flerm_server.store.sql.engine import timestamp_from_column
from flerm_server.store.sql.tables import families, recordings

NO_PARAMETERS = ParameterList((), (), ())


def parameters_to(parameters: ParameterList) -> dict[str, Any]:
    """A parameter list as the JSON of its table."""
    return {"names": parameters.names, "shapes": parameters.shapes, "bands": parameters.bands}


def parameters_from(content: Mapping[str, Any]) -> ParameterList:
    """A parameter list from the JSON of its table."""
    return ParameterList(
        tuple(content["names"]),
        tuple(tuple(shape) for shape in content["shapes"]),
        tuple(content["bands"]),
    )


def spec_to(spec: RecordingSpec) -> dict[str, Any]:
    """The columns of `recordings` that the client's specification fills."""
    return {
        "id": spec.id,
        "parameter_count": len(spec.parameters),
        "lr": spec.lr,
        "seed": spec.seed,
        "role": spec.role,
        "variant": spec.variant,
        "optimizer": spec.optimizer,
        "optimizer_config": dict(spec.optimizer_config),
        "config": dict(spec.config),
        "estimator": asdict(spec.estimator),
        "world_size": spec.world_size,
        "versions": dict(spec.versions),
        "targets_digest": spec.targets_digest,
        "targets_sources": list(spec.targets_sources),
    }


def status_at(now: int) -> sa.Case[str]:
    """What a recording's status reads as at `now`: a running one without a lease is interrupted."""
    lapsed = sa.and_(recordings.c.status == "running", recordings.c.lease_until < now)
    return sa.case((lapsed, "interrupted"), else_=recordings.c.status)


def select_recordings(now: int) -> sa.Select[Any]:
    """All columns of recordings, their family's name, and `shown_status`."""
    return sa.select(
        recordings, families.c.name.label("family"), status_at(now).label("shown_status")
    ).join_from(recordings, families)


def recording_from(
    row: sa.Row[Any], tags: Mapping[str, str], parameters: ParameterList = NO_PARAMETERS
) -> Recording:
    """A recording from a row of `select_recordings`."""
    return Recording(
        spec=RecordingSpec(
            id=row.id,
            family=row.family,
            lr=row.lr,
            parameters=parameters,
            seed=row.seed,
            role=row.role,
            variant=row.variant,
            optimizer=row.optimizer,
            optimizer_config=row.optimizer_config,
            config=row.config,
            estimator=EstimatorSettings(**row.estimator),
            tags=tags,
            world_size=row.world_size,
            versions=row.versions,
            targets_digest=row.targets_digest,
            targets_sources=tuple(row.targets_sources),
        ),
        status=row.shown_status,
        attempt=row.attempt,
        rows=row.rows,
        first_step=row.first_step,
        last_step=row.last_step,
        final_loss=row.final_loss,
        tokens=row.tokens,
        created_at=timestamp_from_column(row.created_at),
        updated_at=timestamp_from_column(row.updated_at),
        finished_at=None if row.finished_at is None else timestamp_from_column(row.finished_at),
        created_by=row.created_by,
        parameter_count=row.parameter_count,
        final_step=row.final_step,
    )


def family_from(row: sa.Row[Any], count: int, rates: tuple[float, ...]) -> Family:
    """A family from its row, the number of its recordings and the learning rates of the base ones."""
    return Family(
        name=row.name,
        description=row.description,
        blocks=tuple(row.blocks),
        created_at=timestamp_from_column(row.created_at),
        updated_at=timestamp_from_column(row.updated_at),
        created_by=row.created_by,
        recordings=count,
        learning_rates=rates,
    )
