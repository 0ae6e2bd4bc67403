"""Values that the server's tests start from."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import numpy as np

from flerm_core.records.measurement_batch import MeasurementBatch
from flerm_core.records.recording import Attempt, Measurement, ParameterList, RecordingSpec
from flerm_server.store.interface import Batch

NAMES = ("layers.0.weight", "layers.1.weight", "readout.weight")
PARAMETERS = ParameterList(
    NAMES, ((4, 4), (4, 4), (2, 4)), ("feed-forward", "feed-forward", "readout")
)


def family() -> str:
    """A name that no other test has."""
    return f"team{uuid.uuid4().hex[:12]}/resmlp"


def spec(family: str, **changes: Any) -> RecordingSpec:
    """A base recording of three tensors at 1e-3."""
    return RecordingSpec(
        **({"family": family, "lr": 1e-3, "parameters": PARAMETERS, "optimizer": "Adam"} | changes)
    )


def attempt(resume_at: int, minute: int) -> Attempt:
    """One that began at 12:`minute` by the client's clock."""
    return Attempt(resume_at=resume_at, started_at=datetime(2026, 1, 1, 12, minute, tzinfo=UTC))


def row(step: int, *values: float, **more: Any) -> Measurement:
    """FSLRs at one step; by default step, step/2 and unmeasured."""
    content = values or (step, step / 2, np.nan)
    return Measurement(step=step, values=np.array(content, np.float32), **more)


def rows(*steps: int) -> tuple[Measurement, ...]:
    """One default row a step."""
    return tuple(row(step) for step in steps)


def batch(recording_id: str, *measurements: Measurement, attempt: int = 0) -> Batch:
    """Rows as the store takes them."""
    return Batch(recording_id, MeasurementBatch.of(measurements), attempt)
