"""Core values to messages and back. Total and lossless: `recording_from(recording_to(r)) == r`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from flerm_core.records.measurement_batch import Extra, MeasurementBatch
from flerm_core.records.packing import pack, unpack
from flerm_core.records.queries import RecordingFilter
from flerm_core.records.recording import (
    Ending,
    EstimatorSettings,
    Family,
    Measurement,
    ParameterList,
    Recording,
    RecordingSpec,
)
from flerm_proto.v1 import registry_pb2 as pb

_EPOCH = datetime.fromtimestamp(0, UTC)


def timestamp_to(moment: datetime | None) -> Timestamp | None:
    """A moment as a message; None stays None (an unset field)."""
    if moment is None:
        return None
    # Not `FromDatetime`: it takes five times as long, in the training thread.
    since = moment - _EPOCH
    return Timestamp(seconds=since.days * 86_400 + since.seconds, nanos=since.microseconds * 1000)


def timestamp_from(message: Any, name: str) -> datetime | None:
    """The timestamp field `name` of `message`, UTC, or None when unset."""
    if not message.HasField(name):
        return None
    moment: datetime = getattr(message, name).ToDatetime(tzinfo=UTC)
    return moment


def _moment(message: Any, name: str) -> datetime:
    return timestamp_from(message, name) or _EPOCH


def struct_to(values: Mapping[str, Any]) -> Struct:
    """A JSON-like mapping as a Struct."""
    message = Struct()
    message.update(dict(values))
    return message


def struct_from(message: Struct) -> dict[str, Any]:
    """The mapping of a Struct; whole numbers come back as int (a Struct knows floats only)."""
    return {key: _whole(value) for key, value in MessageToDict(message).items()}


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    return value


def optional(message: Any, name: str) -> Any:
    """The value of an `optional` field, None when unset."""
    return getattr(message, name) if message.HasField(name) else None


def shapes_to(shapes: tuple[tuple[int, ...], ...]) -> list[pb.Shape]:
    """Shapes as messages."""
    return [pb.Shape(dims=shape) for shape in shapes]


def shapes_from(messages: Any) -> tuple[tuple[int, ...], ...]:
    """Shapes from messages."""
    return tuple(tuple(shape.dims) for shape in messages)


def parameters_to(parameters: ParameterList) -> pb.ParameterList:
    """A parameter list as a message."""
    return pb.ParameterList(
        names=parameters.names, shapes=shapes_to(parameters.shapes), bands=parameters.bands
    )


def parameters_from(message: pb.ParameterList) -> ParameterList:
    """A parameter list from a message."""
    return ParameterList(tuple(message.names), shapes_from(message.shapes), tuple(message.bands))


def estimator_to(settings: EstimatorSettings) -> pb.Estimator:
    """Estimator settings as a message."""
    return pb.Estimator(
        name=settings.name,
        samples=settings.samples,
        warmup=settings.warmup,
        every=settings.every,
        start=settings.start,
        output_weight=settings.output_weight,
        output_bias=settings.output_bias,
    )


def estimator_from(message: pb.Estimator) -> EstimatorSettings:
    """Estimator settings from a message."""
    return EstimatorSettings(
        name=message.name,
        samples=message.samples,
        warmup=message.warmup,
        every=message.every,
        start=message.start,
        output_weight=message.output_weight,
        output_bias=message.output_bias,
    )


def spec_to(spec: RecordingSpec) -> pb.RecordingSpec:
    """A recording's specification as a message."""
    return pb.RecordingSpec(
        id=spec.id,
        family=spec.family,
        lr=spec.lr,
        seed=spec.seed,
        role=spec.role,
        variant=spec.variant,
        optimizer=spec.optimizer,
        optimizer_config=struct_to(spec.optimizer_config),
        config=struct_to(spec.config),
        estimator=estimator_to(spec.estimator),
        tags=spec.tags,
        world_size=spec.world_size,
        versions=spec.versions,
        targets_digest=spec.targets_digest,
        targets_sources=spec.targets_sources,
        parameters=parameters_to(spec.parameters),
    )


def spec_from(message: pb.RecordingSpec) -> RecordingSpec:
    """A recording's specification from a message."""
    return RecordingSpec(
        id=message.id,
        family=message.family,
        lr=message.lr,
        seed=message.seed,
        role=message.role,
        variant=message.variant,
        optimizer=message.optimizer,
        optimizer_config=struct_from(message.optimizer_config),
        config=struct_from(message.config),
        estimator=estimator_from(message.estimator),
        tags=dict(message.tags),
        world_size=message.world_size,
        versions=dict(message.versions),
        targets_digest=message.targets_digest,
        targets_sources=tuple(message.targets_sources),
        parameters=parameters_from(message.parameters),
    )


def recording_to(recording: Recording) -> pb.Recording:
    """A recording as a message."""
    return pb.Recording(
        spec=spec_to(recording.spec),
        status=recording.status,
        attempt=recording.attempt,
        rows=recording.rows,
        first_step=recording.first_step,
        last_step=recording.last_step,
        final_loss=recording.final_loss,
        tokens=recording.tokens,
        created_at=timestamp_to(recording.created_at),
        updated_at=timestamp_to(recording.updated_at),
        finished_at=timestamp_to(recording.finished_at),
        created_by=recording.created_by,
        parameter_count=recording.parameter_count,
        final_step=recording.final_step,
    )


def recording_from(message: pb.Recording) -> Recording:
    """A recording from a message."""
    return Recording(
        spec=spec_from(message.spec),
        status=message.status,
        attempt=message.attempt,
        rows=message.rows,
        first_step=message.first_step,
        last_step=message.last_step,
        final_loss=optional(message, "final_loss"),
        tokens=optional(message, "tokens"),
        created_at=_moment(message, "created_at"),
        updated_at=_moment(message, "updated_at"),
        finished_at=timestamp_from(message, "finished_at"),
        created_by=message.created_by,
        parameter_count=message.parameter_count,
        final_step=optional(message, "final_step"),
    )


def measurement_to(row: Measurement) -> pb.Measurement:
    """A row as a message. Field by field: the training thread makes these, and keywords take twice as long."""
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
        since = row.measured_at - _EPOCH
        message.measured_at.seconds = since.days * 86_400 + since.seconds
        message.measured_at.nanos = since.microseconds * 1000
    if row.scalars:
        message.scalars.update(row.scalars)
    for name, vector in row.vectors.items():
        message.vectors[name] = pack(vector)
    return message


def measurement_from(message: pb.Measurement) -> Measurement:
    """A row from a message. Raises `DataLoss` where bytes are not whole float32 values."""
    return Measurement(
        step=message.step,
        values=unpack(message.fslr, 1)[:, 0],
        loss=optional(message, "loss"),
        learning_rate=optional(message, "learning_rate"),
        tokens=optional(message, "tokens"),
        measured_at=timestamp_from(message, "measured_at"),
        scalars=dict(message.scalars),
        vectors={name: unpack(data, 1)[:, 0] for name, data in message.vectors.items()},
    )


def block_from(messages: Sequence[pb.Measurement]) -> MeasurementBatch:
    """Rows in column form from messages, without an object for each. Nothing is checked: `limits.validate_block` does."""
    return MeasurementBatch(
        steps=[row.step for row in messages],
        fslr=[row.fslr for row in messages],
        losses=[row.loss if row.HasField("loss") else None for row in messages],
        learning_rates=[
            row.learning_rate if row.HasField("learning_rate") else None for row in messages
        ],
        tokens=[row.tokens if row.HasField("tokens") else None for row in messages],
        measured_at=[
            _microseconds(row.measured_at) if row.HasField("measured_at") else None
            for row in messages
        ],
        extras=[_extra_from(row) if row.scalars or row.vectors else None for row in messages],
    )


def _microseconds(moment: Timestamp) -> int:
    return moment.seconds * 1_000_000 + moment.nanos // 1_000


def _extra_from(row: pb.Measurement) -> Extra:
    return Extra(
        dict(row.scalars), {name: unpack(data, 1)[:, 0] for name, data in row.vectors.items()}
    )


def ending_to(recording_id: str, attempt: int, ending: Ending) -> pb.FinishRecordingRequest:
    """The end of an attempt as a request."""
    return pb.FinishRecordingRequest(
        recording_id=recording_id,
        attempt=attempt,
        status=ending.status,
        final_loss=ending.final_loss,
        final_step=ending.final_step,
        tokens=ending.tokens,
    )


def ending_from(message: pb.FinishRecordingRequest) -> Ending:
    """The end of an attempt from a request."""
    return Ending(
        status=message.status,
        final_loss=optional(message, "final_loss"),
        final_step=optional(message, "final_step"),
        tokens=optional(message, "tokens"),
    )


def family_to(family: Family) -> pb.Family:
    """A family as a message."""
    return pb.Family(
        name=family.name,
        description=family.description,
        blocks=family.blocks,
        created_at=timestamp_to(family.created_at),
        updated_at=timestamp_to(family.updated_at),
        created_by=family.created_by,
        recordings=family.recordings,
        learning_rates=family.learning_rates,
    )


def family_from(message: pb.Family) -> Family:
    """A family from a message."""
    return Family(
        name=message.name,
        description=message.description,
        blocks=tuple(message.blocks),
        created_at=_moment(message, "created_at"),
        updated_at=_moment(message, "updated_at"),
        created_by=message.created_by,
        recordings=message.recordings,
        learning_rates=tuple(message.learning_rates),
    )


def filter_to(
    filters: RecordingFilter, page_size: int, page_token: str
) -> pb.ListRecordingsRequest:
    """A listing request."""
    return pb.ListRecordingsRequest(
        family=filters.family,
        lr_min=filters.lr_min,
        lr_max=filters.lr_max,
        role=filters.role,
        variant=filters.variant,
        optimizer=filters.optimizer,
        status=filters.status,
        tags=filters.tags,
        created_after=timestamp_to(filters.created_after),
        created_before=timestamp_to(filters.created_before),
        page_size=page_size,
        page_token=page_token,
    )


def filter_from(message: pb.ListRecordingsRequest) -> RecordingFilter:
    """What a listing request asks for."""
    return RecordingFilter(
        family=message.family,
        lr_min=optional(message, "lr_min"),
        lr_max=optional(message, "lr_max"),
        role=message.role,
        variant=message.variant,
        optimizer=message.optimizer,
        status=message.status,
        tags=dict(message.tags),
        created_after=timestamp_from(message, "created_after"),
        created_before=timestamp_from(message, "created_before"),
    )
