"""Values that the server's tests start from."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import numpy as np

from flerm_core.records.measurement_batch import MeasurementBatch
from flerm_core.records.recording import Attempt, Measurement, ParameterList, RecordingSpec
from flerm_proto import recording_messages
from flerm_proto.v1 import registry_pb2 as pb
from flerm_proto.v1 import registry_pb2_grpc as rpc
from flerm_server.store.interface import Batch

NAMES = ("layers.0.weight", "layers.1.weight", "readout.weight")
PARAMETERS = ParameterList(
    NAMES, ((4, 4), (4, 4), (2, 4)), ("feed-forward", "feed-forward", "readout")
)


def family() -> str:
    """The name of a family that no other test uses."""
    return f"team{uuid.uuid4().hex[:12]}/resmlp"


def spec(family: str, **changes: Any) -> RecordingSpec:
    """A base recording of three tensors at 1e-3."""
    return RecordingSpec(
        **({"family": family, "lr": 1e-3, "parameters": PARAMETERS, "optimizer": "Adam"} | changes)
    )


def attempt(resume_at: int, minute: int) -> Attempt:
    """An attempt that began at 12:`minute` by the client's clock."""
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


def long_recording(stub: rpc.RegistryStub, *, rows: int, tensors: int = 2000) -> str:
    """The id of a recording of `rows` rows, more than a stream that nobody reads holds on its way:
    8 KB a row.
    """
    names = tuple(f"layers.{at}.weight" for at in range(tensors))
    parameters = ParameterList(names, ((1,),) * tensors, ("other",) * tensors)
    sent = spec(family(), parameters=parameters)
    start = pb.StartRecordingRequest(spec=recording_messages.spec_to_proto(sent))
    stub.StartRecording(start, timeout=20)
    values = np.random.default_rng(0).random(tensors, np.float32)
    for first in range(0, rows, 100):
        measurements = [
            recording_messages.measurement_to_proto(Measurement(step=step, values=values))
            for step in range(first, first + 100)
        ]
        request = pb.AppendRequest(recording_id=sent.id, measurements=measurements)
        assert stub.Append(request, timeout=20).committed == 100
    return sent.id
