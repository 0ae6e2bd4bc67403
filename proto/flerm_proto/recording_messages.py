"""The conversion of recordings, families and measurements to messages and back.

`recording_from_proto(recording_to_proto(r)) == r`, and likewise for the others. The fields of
measurements are converted one by one, because measurements are many, and because their vectors are
sent as packed bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from flerm_core.records.auxiliary import Auxiliary
from flerm_core.records.measurement_batch import MeasurementBatch
from flerm_core.records.packing import pack, unpack
from flerm_core.records.queries import RecordingFilter
from flerm_core.records.recording import (
    Attempt,
    Ending,
    EstimatorSettings,
    Family,
    Measurement,
    ParameterList,
    Recording,
    RecordingSpec,
)
from flerm_proto.fields import MessageCodec, set_timestamp, timestamp_from_proto
from flerm_proto.v1 import registry_pb2 as pb

PARAMETERS = MessageCodec(ParameterList, pb.ParameterList)
ESTIMATOR = MessageCodec(EstimatorSettings, pb.EstimatorSettings)
SPEC = MessageCodec(RecordingSpec, pb.RecordingSpec, parts=[PARAMETERS, ESTIMATOR])
RECORDING = MessageCodec(Recording, pb.Recording, parts=[SPEC])
ATTEMPT = MessageCodec(Attempt, pb.Attempt)
ENDING = MessageCodec(
    Ending,
    pb.FinishRecordingRequest,
    message_only=["recording_id", "attempt", "acknowledged_step"],
)
FAMILY = MessageCodec(Family, pb.Family)
FILTER = MessageCodec(
    RecordingFilter, pb.ListRecordingsRequest, message_only=["page_size", "page_token"]
)

parameters_to_proto, parameters_from_proto = PARAMETERS.to_proto, PARAMETERS.from_proto
spec_to_proto, spec_from_proto = SPEC.to_proto, SPEC.from_proto
recording_to_proto, recording_from_proto = RECORDING.to_proto, RECORDING.from_proto
attempt_to_proto, attempt_from_proto = ATTEMPT.to_proto, ATTEMPT.from_proto
ending_to_proto, ending_from_proto = ENDING.to_proto, ENDING.from_proto
family_to_proto, family_from_proto = FAMILY.to_proto, FAMILY.from_proto
filter_to_proto, filter_from_proto = FILTER.to_proto, FILTER.from_proto


def measurement_to_proto(row: Measurement) -> pb.Measurement:
    """A measurement as a message.

    Fields are set one by one: the training thread calls this function, and keyword arguments of the
    constructor take twice as long.
    """
    message = pb.Measurement()
    message.step = row.step
    message.fslr = pack(row.values)
    if row.loss is not None:
        message.loss = row.loss
    if row.learning_rate is not None:
        message.learning_rate = row.learning_rate
    if row.tokens is not None:
        message.tokens = row.tokens
    if row.measured_at is not None:
        set_timestamp(message.measured_at, row.measured_at)
    if row.scalars:
        message.scalars.update(row.scalars)
    for name, vector in row.vectors.items():
        message.vectors[name] = pack(vector)
    return message


def measurement_from_proto(message: pb.Measurement) -> Measurement:
    """A measurement from a message.

    Raises `DataLoss` where packed bytes are no whole number of float32 values, and `ValueError` for
    a time that `datetime` cannot hold.
    """
    return Measurement(
        step=message.step,
        values=unpack(message.fslr, 1)[:, 0],
        loss=message.loss if message.HasField("loss") else None,
        learning_rate=message.learning_rate if message.HasField("learning_rate") else None,
        tokens=message.tokens if message.HasField("tokens") else None,
        measured_at=timestamp_from_proto(message.measured_at)
        if message.HasField("measured_at")
        else None,
        scalars=dict(message.scalars),
        vectors={name: unpack(data, 1)[:, 0] for name, data in message.vectors.items()},
    )


def batch_from_proto(messages: Sequence[pb.Measurement]) -> MeasurementBatch:
    """Measurements as columns. No object is made for a single measurement.

    Values are checked later, by `flerm_core.records.measurement_validation`. Raises `DataLoss`
    where packed bytes of an auxiliary vector are no whole number of float32 values.
    """
    rows = list(messages)  # once: protobuf makes an object of each message at each pass
    return MeasurementBatch(
        steps=[row.step for row in rows],
        fslr=[row.fslr for row in rows],
        losses=[row.loss if row.HasField("loss") else None for row in rows],
        learning_rates=[
            row.learning_rate if row.HasField("learning_rate") else None for row in rows
        ],
        tokens=[row.tokens if row.HasField("tokens") else None for row in rows],
        measured_at=[
            _microseconds(row.measured_at) if row.HasField("measured_at") else None for row in rows
        ],
        auxiliary=[_auxiliary(row) if row.scalars or row.vectors else None for row in rows],
    )


def _microseconds(moment: Timestamp) -> int:
    return moment.seconds * 1_000_000 + moment.nanos // 1_000


def _auxiliary(row: pb.Measurement) -> Auxiliary:
    return Auxiliary(
        dict(row.scalars), {name: unpack(data, 1)[:, 0] for name, data in row.vectors.items()}
    )
