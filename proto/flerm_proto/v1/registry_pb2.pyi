from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ServerInfoResponse(_message.Message):
    __slots__ = ("version", "schema_revision", "api_versions", "now", "max_parameters", "max_rows_per_append")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_REVISION_FIELD_NUMBER: _ClassVar[int]
    API_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    MAX_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    MAX_ROWS_PER_APPEND_FIELD_NUMBER: _ClassVar[int]
    version: str
    schema_revision: str
    api_versions: _containers.RepeatedScalarFieldContainer[str]
    now: _timestamp_pb2.Timestamp
    max_parameters: int
    max_rows_per_append: int
    def __init__(self, version: _Optional[str] = ..., schema_revision: _Optional[str] = ..., api_versions: _Optional[_Iterable[str]] = ..., now: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., max_parameters: _Optional[int] = ..., max_rows_per_append: _Optional[int] = ...) -> None: ...

class RegisterFamilyRequest(_message.Message):
    __slots__ = ("name", "description", "blocks")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    blocks: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., blocks: _Optional[_Iterable[str]] = ...) -> None: ...

class Family(_message.Message):
    __slots__ = ("name", "description", "blocks", "created_at", "updated_at", "created_by", "recordings", "learning_rates")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    UPDATED_AT_FIELD_NUMBER: _ClassVar[int]
    CREATED_BY_FIELD_NUMBER: _ClassVar[int]
    RECORDINGS_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATES_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    blocks: _containers.RepeatedScalarFieldContainer[str]
    created_at: _timestamp_pb2.Timestamp
    updated_at: _timestamp_pb2.Timestamp
    created_by: str
    recordings: int
    learning_rates: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., blocks: _Optional[_Iterable[str]] = ..., created_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., updated_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., created_by: _Optional[str] = ..., recordings: _Optional[int] = ..., learning_rates: _Optional[_Iterable[float]] = ...) -> None: ...

class RenameFamilyRequest(_message.Message):
    __slots__ = ("name", "new_name")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NEW_NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    new_name: str
    def __init__(self, name: _Optional[str] = ..., new_name: _Optional[str] = ...) -> None: ...

class ListFamiliesRequest(_message.Message):
    __slots__ = ("prefix", "page_size", "page_token")
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    prefix: str
    page_size: int
    page_token: str
    def __init__(self, prefix: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListFamiliesResponse(_message.Message):
    __slots__ = ("families", "next_page_token")
    FAMILIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    families: _containers.RepeatedCompositeFieldContainer[Family]
    next_page_token: str
    def __init__(self, families: _Optional[_Iterable[_Union[Family, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class Shape(_message.Message):
    __slots__ = ("dims",)
    DIMS_FIELD_NUMBER: _ClassVar[int]
    dims: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, dims: _Optional[_Iterable[int]] = ...) -> None: ...

class ParameterList(_message.Message):
    __slots__ = ("names", "shapes", "bands")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    SHAPES_FIELD_NUMBER: _ClassVar[int]
    BANDS_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    shapes: _containers.RepeatedCompositeFieldContainer[Shape]
    bands: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, names: _Optional[_Iterable[str]] = ..., shapes: _Optional[_Iterable[_Union[Shape, _Mapping]]] = ..., bands: _Optional[_Iterable[str]] = ...) -> None: ...

class EstimatorSettings(_message.Message):
    __slots__ = ("name", "samples", "warmup", "every", "start", "output_weight", "output_bias")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    WARMUP_FIELD_NUMBER: _ClassVar[int]
    EVERY_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_BIAS_FIELD_NUMBER: _ClassVar[int]
    name: str
    samples: int
    warmup: int
    every: int
    start: int
    output_weight: str
    output_bias: str
    def __init__(self, name: _Optional[str] = ..., samples: _Optional[int] = ..., warmup: _Optional[int] = ..., every: _Optional[int] = ..., start: _Optional[int] = ..., output_weight: _Optional[str] = ..., output_bias: _Optional[str] = ...) -> None: ...

class RecordingSpec(_message.Message):
    __slots__ = ("id", "family", "lr", "seed", "role", "variant", "optimizer", "optimizer_config", "config", "estimator", "tags", "world_size", "versions", "targets_digest", "targets_sources", "parameters")
    class TagsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class VersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    LR_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_CONFIG_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    ESTIMATOR_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    TARGETS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TARGETS_SOURCES_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    id: str
    family: str
    lr: float
    seed: int
    role: str
    variant: str
    optimizer: str
    optimizer_config: _struct_pb2.Struct
    config: _struct_pb2.Struct
    estimator: EstimatorSettings
    tags: _containers.ScalarMap[str, str]
    world_size: int
    versions: _containers.ScalarMap[str, str]
    targets_digest: str
    targets_sources: _containers.RepeatedScalarFieldContainer[str]
    parameters: ParameterList
    def __init__(self, id: _Optional[str] = ..., family: _Optional[str] = ..., lr: _Optional[float] = ..., seed: _Optional[int] = ..., role: _Optional[str] = ..., variant: _Optional[str] = ..., optimizer: _Optional[str] = ..., optimizer_config: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., config: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., estimator: _Optional[_Union[EstimatorSettings, _Mapping]] = ..., tags: _Optional[_Mapping[str, str]] = ..., world_size: _Optional[int] = ..., versions: _Optional[_Mapping[str, str]] = ..., targets_digest: _Optional[str] = ..., targets_sources: _Optional[_Iterable[str]] = ..., parameters: _Optional[_Union[ParameterList, _Mapping]] = ...) -> None: ...

class Attempt(_message.Message):
    __slots__ = ("id", "resume_at", "started_at", "sent_at", "after")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESUME_AT_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    SENT_AT_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    id: str
    resume_at: int
    started_at: _timestamp_pb2.Timestamp
    sent_at: _timestamp_pb2.Timestamp
    after: str
    def __init__(self, id: _Optional[str] = ..., resume_at: _Optional[int] = ..., started_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., sent_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., after: _Optional[str] = ...) -> None: ...

class StartRecordingRequest(_message.Message):
    __slots__ = ("spec", "attempt")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    spec: RecordingSpec
    attempt: Attempt
    def __init__(self, spec: _Optional[_Union[RecordingSpec, _Mapping]] = ..., attempt: _Optional[_Union[Attempt, _Mapping]] = ...) -> None: ...

class StartRecordingResponse(_message.Message):
    __slots__ = ("recording_id", "attempt", "created")
    RECORDING_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    recording_id: str
    attempt: int
    created: bool
    def __init__(self, recording_id: _Optional[str] = ..., attempt: _Optional[int] = ..., created: bool = ...) -> None: ...

class Measurement(_message.Message):
    __slots__ = ("step", "fslr", "loss", "learning_rate", "tokens", "measured_at", "scalars", "vectors")
    class ScalarsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class VectorsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    STEP_FIELD_NUMBER: _ClassVar[int]
    FSLR_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    MEASURED_AT_FIELD_NUMBER: _ClassVar[int]
    SCALARS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    step: int
    fslr: bytes
    loss: float
    learning_rate: float
    tokens: int
    measured_at: _timestamp_pb2.Timestamp
    scalars: _containers.ScalarMap[str, float]
    vectors: _containers.ScalarMap[str, bytes]
    def __init__(self, step: _Optional[int] = ..., fslr: _Optional[bytes] = ..., loss: _Optional[float] = ..., learning_rate: _Optional[float] = ..., tokens: _Optional[int] = ..., measured_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., scalars: _Optional[_Mapping[str, float]] = ..., vectors: _Optional[_Mapping[str, bytes]] = ...) -> None: ...

class AppendRequest(_message.Message):
    __slots__ = ("recording_id", "attempt", "measurements", "acknowledged_step")
    RECORDING_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    MEASUREMENTS_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_STEP_FIELD_NUMBER: _ClassVar[int]
    recording_id: str
    attempt: int
    measurements: _containers.RepeatedCompositeFieldContainer[Measurement]
    acknowledged_step: int
    def __init__(self, recording_id: _Optional[str] = ..., attempt: _Optional[int] = ..., measurements: _Optional[_Iterable[_Union[Measurement, _Mapping]]] = ..., acknowledged_step: _Optional[int] = ...) -> None: ...

class AppendResponse(_message.Message):
    __slots__ = ("committed", "duplicates")
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    DUPLICATES_FIELD_NUMBER: _ClassVar[int]
    committed: int
    duplicates: int
    def __init__(self, committed: _Optional[int] = ..., duplicates: _Optional[int] = ...) -> None: ...

class FinishRecordingRequest(_message.Message):
    __slots__ = ("recording_id", "attempt", "status", "final_loss", "final_step", "tokens", "remarks", "finished_at", "sent_at", "acknowledged_step")
    RECORDING_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    FINAL_LOSS_FIELD_NUMBER: _ClassVar[int]
    FINAL_STEP_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    REMARKS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_AT_FIELD_NUMBER: _ClassVar[int]
    SENT_AT_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_STEP_FIELD_NUMBER: _ClassVar[int]
    recording_id: str
    attempt: int
    status: str
    final_loss: float
    final_step: int
    tokens: int
    remarks: _containers.RepeatedScalarFieldContainer[str]
    finished_at: _timestamp_pb2.Timestamp
    sent_at: _timestamp_pb2.Timestamp
    acknowledged_step: int
    def __init__(self, recording_id: _Optional[str] = ..., attempt: _Optional[int] = ..., status: _Optional[str] = ..., final_loss: _Optional[float] = ..., final_step: _Optional[int] = ..., tokens: _Optional[int] = ..., remarks: _Optional[_Iterable[str]] = ..., finished_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., sent_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., acknowledged_step: _Optional[int] = ...) -> None: ...

class ImportRecordingsRequest(_message.Message):
    __slots__ = ("parts",)
    PARTS_FIELD_NUMBER: _ClassVar[int]
    parts: _containers.RepeatedCompositeFieldContainer[RecordingPart]
    def __init__(self, parts: _Optional[_Iterable[_Union[RecordingPart, _Mapping]]] = ...) -> None: ...

class RecordingPart(_message.Message):
    __slots__ = ("recording_id", "start", "measurements", "finish")
    RECORDING_ID_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    MEASUREMENTS_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    recording_id: str
    start: StartRecordingRequest
    measurements: _containers.RepeatedCompositeFieldContainer[Measurement]
    finish: FinishRecordingRequest
    def __init__(self, recording_id: _Optional[str] = ..., start: _Optional[_Union[StartRecordingRequest, _Mapping]] = ..., measurements: _Optional[_Iterable[_Union[Measurement, _Mapping]]] = ..., finish: _Optional[_Union[FinishRecordingRequest, _Mapping]] = ...) -> None: ...

class ImportRecordingsResponse(_message.Message):
    __slots__ = ("committed", "duplicates")
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    DUPLICATES_FIELD_NUMBER: _ClassVar[int]
    committed: int
    duplicates: int
    def __init__(self, committed: _Optional[int] = ..., duplicates: _Optional[int] = ...) -> None: ...

class TagRecordingRequest(_message.Message):
    __slots__ = ("recording_id", "set", "remove")
    class SetEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    RECORDING_ID_FIELD_NUMBER: _ClassVar[int]
    SET_FIELD_NUMBER: _ClassVar[int]
    REMOVE_FIELD_NUMBER: _ClassVar[int]
    recording_id: str
    set: _containers.ScalarMap[str, str]
    remove: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, recording_id: _Optional[str] = ..., set: _Optional[_Mapping[str, str]] = ..., remove: _Optional[_Iterable[str]] = ...) -> None: ...

class DeleteRecordingRequest(_message.Message):
    __slots__ = ("recording_id",)
    RECORDING_ID_FIELD_NUMBER: _ClassVar[int]
    recording_id: str
    def __init__(self, recording_id: _Optional[str] = ...) -> None: ...

class DeleteRecordingResponse(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: int
    def __init__(self, rows: _Optional[int] = ...) -> None: ...

class RenewLeaseRequest(_message.Message):
    __slots__ = ("recording_id", "attempt")
    RECORDING_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    recording_id: str
    attempt: int
    def __init__(self, recording_id: _Optional[str] = ..., attempt: _Optional[int] = ...) -> None: ...

class RenewLeaseResponse(_message.Message):
    __slots__ = ("seconds",)
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    seconds: float
    def __init__(self, seconds: _Optional[float] = ...) -> None: ...

class Recording(_message.Message):
    __slots__ = ("spec", "status", "attempt", "rows", "first_step", "last_step", "final_loss", "tokens", "created_at", "updated_at", "finished_at", "created_by", "parameter_count", "final_step", "remarks")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEP_FIELD_NUMBER: _ClassVar[int]
    LAST_STEP_FIELD_NUMBER: _ClassVar[int]
    FINAL_LOSS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    UPDATED_AT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_AT_FIELD_NUMBER: _ClassVar[int]
    CREATED_BY_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_COUNT_FIELD_NUMBER: _ClassVar[int]
    FINAL_STEP_FIELD_NUMBER: _ClassVar[int]
    REMARKS_FIELD_NUMBER: _ClassVar[int]
    spec: RecordingSpec
    status: str
    attempt: int
    rows: int
    first_step: int
    last_step: int
    final_loss: float
    tokens: int
    created_at: _timestamp_pb2.Timestamp
    updated_at: _timestamp_pb2.Timestamp
    finished_at: _timestamp_pb2.Timestamp
    created_by: str
    parameter_count: int
    final_step: int
    remarks: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, spec: _Optional[_Union[RecordingSpec, _Mapping]] = ..., status: _Optional[str] = ..., attempt: _Optional[int] = ..., rows: _Optional[int] = ..., first_step: _Optional[int] = ..., last_step: _Optional[int] = ..., final_loss: _Optional[float] = ..., tokens: _Optional[int] = ..., created_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., updated_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., finished_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., created_by: _Optional[str] = ..., parameter_count: _Optional[int] = ..., final_step: _Optional[int] = ..., remarks: _Optional[_Iterable[str]] = ...) -> None: ...

class GetRecordingRequest(_message.Message):
    __slots__ = ("recording_id",)
    RECORDING_ID_FIELD_NUMBER: _ClassVar[int]
    recording_id: str
    def __init__(self, recording_id: _Optional[str] = ...) -> None: ...

class ListRecordingsRequest(_message.Message):
    __slots__ = ("family", "lr_min", "lr_max", "role", "variant", "optimizer", "status", "tags", "created_after", "created_before", "page_size", "page_token")
    class TagsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    LR_MIN_FIELD_NUMBER: _ClassVar[int]
    LR_MAX_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    CREATED_AFTER_FIELD_NUMBER: _ClassVar[int]
    CREATED_BEFORE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    family: str
    lr_min: float
    lr_max: float
    role: str
    variant: str
    optimizer: str
    status: str
    tags: _containers.ScalarMap[str, str]
    created_after: _timestamp_pb2.Timestamp
    created_before: _timestamp_pb2.Timestamp
    page_size: int
    page_token: str
    def __init__(self, family: _Optional[str] = ..., lr_min: _Optional[float] = ..., lr_max: _Optional[float] = ..., role: _Optional[str] = ..., variant: _Optional[str] = ..., optimizer: _Optional[str] = ..., status: _Optional[str] = ..., tags: _Optional[_Mapping[str, str]] = ..., created_after: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., created_before: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListRecordingsResponse(_message.Message):
    __slots__ = ("recordings", "next_page_token")
    RECORDINGS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    recordings: _containers.RepeatedCompositeFieldContainer[Recording]
    next_page_token: str
    def __init__(self, recordings: _Optional[_Iterable[_Union[Recording, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetTrajectoryRequest(_message.Message):
    __slots__ = ("recording_id", "first_step", "last_step", "pattern", "max_points", "auxiliary")
    RECORDING_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEP_FIELD_NUMBER: _ClassVar[int]
    LAST_STEP_FIELD_NUMBER: _ClassVar[int]
    PATTERN_FIELD_NUMBER: _ClassVar[int]
    MAX_POINTS_FIELD_NUMBER: _ClassVar[int]
    AUXILIARY_FIELD_NUMBER: _ClassVar[int]
    recording_id: str
    first_step: int
    last_step: int
    pattern: str
    max_points: int
    auxiliary: bool
    def __init__(self, recording_id: _Optional[str] = ..., first_step: _Optional[int] = ..., last_step: _Optional[int] = ..., pattern: _Optional[str] = ..., max_points: _Optional[int] = ..., auxiliary: bool = ...) -> None: ...

class TrajectoryHeader(_message.Message):
    __slots__ = ("recording", "parameters", "rows")
    RECORDING_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    recording: Recording
    parameters: ParameterList
    rows: int
    def __init__(self, recording: _Optional[_Union[Recording, _Mapping]] = ..., parameters: _Optional[_Union[ParameterList, _Mapping]] = ..., rows: _Optional[int] = ...) -> None: ...

class TrajectoryRows(_message.Message):
    __slots__ = ("steps", "values", "losses", "learning_rates", "tokens", "scalars", "vectors")
    class ScalarsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Column
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Column, _Mapping]] = ...) -> None: ...
    class VectorsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    STEPS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SCALARS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    steps: _containers.RepeatedScalarFieldContainer[int]
    values: bytes
    losses: _containers.RepeatedScalarFieldContainer[float]
    learning_rates: _containers.RepeatedScalarFieldContainer[float]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    scalars: _containers.MessageMap[str, Column]
    vectors: _containers.ScalarMap[str, bytes]
    def __init__(self, steps: _Optional[_Iterable[int]] = ..., values: _Optional[bytes] = ..., losses: _Optional[_Iterable[float]] = ..., learning_rates: _Optional[_Iterable[float]] = ..., tokens: _Optional[_Iterable[int]] = ..., scalars: _Optional[_Mapping[str, Column]] = ..., vectors: _Optional[_Mapping[str, bytes]] = ...) -> None: ...

class Column(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class TrajectoryChunk(_message.Message):
    __slots__ = ("header", "rows")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    header: TrajectoryHeader
    rows: TrajectoryRows
    def __init__(self, header: _Optional[_Union[TrajectoryHeader, _Mapping]] = ..., rows: _Optional[_Union[TrajectoryRows, _Mapping]] = ...) -> None: ...

class GetTargetsRequest(_message.Message):
    __slots__ = ("family", "lr", "policy", "names", "shapes", "blocks", "depth", "optimizer", "optimizer_config", "estimator", "tags", "step")
    class TagsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    LR_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    SHAPES_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_CONFIG_FIELD_NUMBER: _ClassVar[int]
    ESTIMATOR_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    family: str
    lr: float
    policy: str
    names: _containers.RepeatedScalarFieldContainer[str]
    shapes: _containers.RepeatedCompositeFieldContainer[Shape]
    blocks: _containers.RepeatedScalarFieldContainer[str]
    depth: str
    optimizer: str
    optimizer_config: _struct_pb2.Struct
    estimator: EstimatorSettings
    tags: _containers.ScalarMap[str, str]
    step: int
    def __init__(self, family: _Optional[str] = ..., lr: _Optional[float] = ..., policy: _Optional[str] = ..., names: _Optional[_Iterable[str]] = ..., shapes: _Optional[_Iterable[_Union[Shape, _Mapping]]] = ..., blocks: _Optional[_Iterable[str]] = ..., depth: _Optional[str] = ..., optimizer: _Optional[str] = ..., optimizer_config: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., estimator: _Optional[_Union[EstimatorSettings, _Mapping]] = ..., tags: _Optional[_Mapping[str, str]] = ..., step: _Optional[int] = ...) -> None: ...

class TargetsHeader(_message.Message):
    __slots__ = ("family", "lr", "policy", "depth", "names", "optimizer", "optimizer_config", "estimator", "sources", "source_learning_rates", "seeds", "digest", "final_step", "final_tokens", "remarks", "batch_size")
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    LR_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_CONFIG_FIELD_NUMBER: _ClassVar[int]
    ESTIMATOR_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_LEARNING_RATES_FIELD_NUMBER: _ClassVar[int]
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    FINAL_STEP_FIELD_NUMBER: _ClassVar[int]
    FINAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REMARKS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    family: str
    lr: float
    policy: str
    depth: str
    names: _containers.RepeatedScalarFieldContainer[str]
    optimizer: str
    optimizer_config: _struct_pb2.Struct
    estimator: EstimatorSettings
    sources: _containers.RepeatedScalarFieldContainer[str]
    source_learning_rates: _containers.RepeatedScalarFieldContainer[float]
    seeds: int
    digest: str
    final_step: int
    final_tokens: int
    remarks: _containers.RepeatedScalarFieldContainer[str]
    batch_size: int
    def __init__(self, family: _Optional[str] = ..., lr: _Optional[float] = ..., policy: _Optional[str] = ..., depth: _Optional[str] = ..., names: _Optional[_Iterable[str]] = ..., optimizer: _Optional[str] = ..., optimizer_config: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., estimator: _Optional[_Union[EstimatorSettings, _Mapping]] = ..., sources: _Optional[_Iterable[str]] = ..., source_learning_rates: _Optional[_Iterable[float]] = ..., seeds: _Optional[int] = ..., digest: _Optional[str] = ..., final_step: _Optional[int] = ..., final_tokens: _Optional[int] = ..., remarks: _Optional[_Iterable[str]] = ..., batch_size: _Optional[int] = ...) -> None: ...

class TargetsRows(_message.Message):
    __slots__ = ("steps", "values", "spread", "tokens")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    SPREAD_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    steps: _containers.RepeatedScalarFieldContainer[int]
    values: bytes
    spread: bytes
    tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, steps: _Optional[_Iterable[int]] = ..., values: _Optional[bytes] = ..., spread: _Optional[bytes] = ..., tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class TargetsChunk(_message.Message):
    __slots__ = ("header", "rows")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    header: TargetsHeader
    rows: TargetsRows
    def __init__(self, header: _Optional[_Union[TargetsHeader, _Mapping]] = ..., rows: _Optional[_Union[TargetsRows, _Mapping]] = ...) -> None: ...

class GetBestRequest(_message.Message):
    __slots__ = ("family", "role", "variant", "optimizer", "tags", "pick", "cautions")
    class TagsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class PickEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    PICK_FIELD_NUMBER: _ClassVar[int]
    CAUTIONS_FIELD_NUMBER: _ClassVar[int]
    family: str
    role: str
    variant: str
    optimizer: str
    tags: _containers.ScalarMap[str, str]
    pick: _containers.ScalarMap[str, str]
    cautions: bool
    def __init__(self, family: _Optional[str] = ..., role: _Optional[str] = ..., variant: _Optional[str] = ..., optimizer: _Optional[str] = ..., tags: _Optional[_Mapping[str, str]] = ..., pick: _Optional[_Mapping[str, str]] = ..., cautions: bool = ...) -> None: ...

class LossPoint(_message.Message):
    __slots__ = ("lr", "loss", "spread", "seeds", "diverged")
    LR_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    SPREAD_FIELD_NUMBER: _ClassVar[int]
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    DIVERGED_FIELD_NUMBER: _ClassVar[int]
    lr: float
    loss: float
    spread: float
    seeds: int
    diverged: int
    def __init__(self, lr: _Optional[float] = ..., loss: _Optional[float] = ..., spread: _Optional[float] = ..., seeds: _Optional[int] = ..., diverged: _Optional[int] = ...) -> None: ...

class Best(_message.Message):
    __slots__ = ("family", "lr", "loss", "optimum", "optimum_spread", "next_lr", "advice", "points", "experiment", "cautions")
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    LR_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    OPTIMUM_FIELD_NUMBER: _ClassVar[int]
    OPTIMUM_SPREAD_FIELD_NUMBER: _ClassVar[int]
    NEXT_LR_FIELD_NUMBER: _ClassVar[int]
    ADVICE_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    CAUTIONS_FIELD_NUMBER: _ClassVar[int]
    family: str
    lr: float
    loss: float
    optimum: float
    optimum_spread: float
    next_lr: float
    advice: str
    points: _containers.RepeatedCompositeFieldContainer[LossPoint]
    experiment: str
    cautions: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, family: _Optional[str] = ..., lr: _Optional[float] = ..., loss: _Optional[float] = ..., optimum: _Optional[float] = ..., optimum_spread: _Optional[float] = ..., next_lr: _Optional[float] = ..., advice: _Optional[str] = ..., points: _Optional[_Iterable[_Union[LossPoint, _Mapping]]] = ..., experiment: _Optional[str] = ..., cautions: _Optional[_Iterable[str]] = ...) -> None: ...
