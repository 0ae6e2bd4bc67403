"""A field of a recording is written once, in the core's dataclass, and reaches every derived form.

The forms are the message of the wire contract, the row of the table, the model of REST, and the
`--json` of the command line.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from google.protobuf import descriptor_pb2, descriptor_pool, struct_pb2, timestamp_pb2
from google.protobuf.message_factory import GetMessageClass

from flerm_client.cli.recordings import as_plain
from flerm_core.records.recording import (
    Attempt,
    Ending,
    EstimatorSettings,
    ParameterList,
    Recording,
    RecordingSpec,
)
from flerm_proto import recording_messages
from flerm_proto.fields import MessageCodec
from flerm_proto.v1 import registry_pb2 as pb
from flerm_server.http.api.core_models import fields_of
from flerm_server.http.api.schemas import RecordingOut
from flerm_server.store.sql import mappers, tables
from flerm_server.store.sql.store import open_store

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
PARAMETERS = ParameterList(("layers.0.weight", "bias"), ((4, 4), ()), ("feed-forward", "other"))
SPEC = RecordingSpec(
    family="team/mlp",
    lr=3e-4,
    parameters=PARAMETERS,
    seed=3,
    role="scaled",
    variant="matched",
    optimizer="AdamW",
    optimizer_config={"betas": [0.9, 0.95]},
    config={"width": 64},
    estimator=EstimatorSettings(name="kronecker", samples=2, warmup=3, every=5, start=4,
                                output_weight="w", output_bias="b"),
    tags={"purpose": "test"},
    world_size=2,
    versions={"torch": "2.9"},
    targets_digest="0f" * 32,
    targets_sources=("6a1f0c1e-8a57-4b6e-9f0e-0c5d3c1c9a11",),
)  # fmt: skip
RECORDING = Recording(
    spec=SPEC,
    status="completed",
    attempt=2,
    rows=7,
    first_step=4,
    last_step=34,
    final_loss=0.5,
    tokens=900,
    created_at=NOON,
    updated_at=NOON.replace(hour=13),
    finished_at=NOON.replace(hour=14),
    created_by="abc",
    parameter_count=2,
    final_step=36,
    remarks=("nothing moved",),
)
ENDING = Ending(
    status="diverged",
    final_loss=0.25,
    final_step=12,
    tokens=34,
    remarks=("step 3 was not measured: it moved nothing", "1 tensor was clamped"),
    finished_at=NOON.replace(hour=14),
    sent_at=NOON.replace(hour=15),
)


def names(value: Any) -> set[str]:
    return {each.name for each in fields(value)}


def test_the_values_of_this_file_differ_from_every_default() -> None:
    """A field that was lost on its way would come back as its default, so none may be sent."""
    plain = RecordingSpec(family="", lr=0.0, parameters=ParameterList((), (), ()))
    for full, default in ((SPEC, plain), (RECORDING, Recording(spec=plain)), (ENDING, Ending())):
        same = [name for name in names(full) if getattr(full, name) == getattr(default, name)]
        assert same == [], "give each of these fields a value of its own in this file"


def test_every_field_reaches_the_wire() -> None:
    for value, codec in (
        (RECORDING, recording_messages.RECORDING),
        (ENDING, recording_messages.ENDING),
        (Attempt(resume_at=3, sent_at=NOON, after="x"), recording_messages.ATTEMPT),
    ):
        assert codec.from_proto(codec.to_proto(value)) == value  # type: ignore[attr-defined]


def test_every_field_reaches_rest_and_the_command_line() -> None:
    expected = (names(RECORDING) - {"spec"}) | names(SPEC)
    rest = RecordingOut.of(RECORDING).model_dump(mode="json")
    assert set(rest) == expected
    assert set(as_plain(RECORDING, parameters=True)) == expected
    for content in (rest, as_plain(RECORDING)):
        assert (content["final_step"], content["world_size"]) == (36, 2)
        assert content["estimator"]["output_bias"] == "b"
        assert content["targets_sources"] == list(SPEC.targets_sources)


def test_every_field_reaches_the_table(tmp_path) -> None:
    with closing(open_store(f"sqlite:///{tmp_path}/registry.db")) as store:
        store.start(SPEC, Attempt(started_at=NOON))
        # Sent by a clock that is right, since `sent_at` would correct `finished_at`.
        ended = store.finish(SPEC.id, 0, replace(ENDING, sent_at=None))
        found = store.recording(SPEC.id)
    assert found.spec == SPEC
    assert Ending.of(found) == replace(ENDING, sent_at=None)
    assert ended.final_step == ENDING.final_step


def test_every_recording_field_has_a_column() -> None:
    derived = {"spec", "parameters", "family", "tags"}  # tables of their own
    assert (names(RECORDING) | names(SPEC)) - derived <= set(tables.recordings.c.keys())


@dataclass(frozen=True, slots=True, kw_only=True)
class WiderSpec(RecordingSpec):
    """A specification with a field that no release has."""

    imaginary: str = ""


WIDER = WiderSpec(
    **{each.name: getattr(SPEC, each.name) for each in fields(SPEC)}, imaginary="jupiter"
)


def wider_message() -> Any:
    """`RecordingSpec` of the contract with the field `imaginary`."""
    file = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    spec = next(each for each in file.message_type if each.name == "RecordingSpec")
    kind = descriptor_pb2.FieldDescriptorProto
    spec.field.add(name="imaginary", number=99, type=kind.TYPE_STRING, label=kind.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    for dependency in (struct_pb2, timestamp_pb2):
        pool.AddSerializedFile(dependency.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return GetMessageClass(pool.FindMessageTypeByName("flerm.registry.v1.RecordingSpec"))


def test_a_new_field_reaches_the_wire_without_a_converter_of_its_own() -> None:
    parts = [recording_messages.PARAMETERS, recording_messages.ESTIMATOR]
    with pytest.raises(TypeError, match=r"differ in \['imaginary'\]"):
        MessageCodec(WiderSpec, pb.RecordingSpec, parts=parts)
    message = wider_message()
    plain = recording_messages.spec_to_proto(SPEC).SerializeToString()
    codec = MessageCodec(WiderSpec, message, parts=parts, value_only=["parameters", "estimator"])
    found = codec.from_proto(
        message.FromString(plain + message(imaginary="jupiter").SerializeToString()),
        parameters=SPEC.parameters,
        estimator=SPEC.estimator,
    )
    assert found == WIDER


def test_a_new_field_reaches_the_table_without_a_mapper_of_its_own() -> None:
    elsewhere = ["family", "parameters", "tags"]
    with pytest.raises(TypeError, match=r"no column for \['imaginary'\]"):
        mappers.RowMapper(WiderSpec, tables.recordings, elsewhere=elsewhere)
    metadata = sa.MetaData()
    table = sa.Table(
        "recordings",
        metadata,
        *(sa.Column(each.name, each.type) for each in tables.recordings.c),
        sa.Column("imaginary", sa.Text),
    )
    mapper = mappers.RowMapper(WiderSpec, table, elsewhere=elsewhere)
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        metadata.create_all(connection)
        connection.execute(table.insert().values(mapper.to_row(WIDER)))
        row = connection.execute(sa.select(*mappers.columns_of(table))).one()
    kept_elsewhere = {name: [getattr(WIDER, name)] for name in elsewhere}
    assert mapper.from_columns([[each] for each in row], **kept_elsewhere) == [WIDER]


def test_a_new_field_reaches_rest_and_the_command_line_without_a_word() -> None:
    recording = replace(RECORDING, spec=WIDER)
    assert as_plain(recording)["imaginary"] == "jupiter"
    model = fields_of(WiderSpec, without=["parameters", "estimator"])
    assert model.of(WIDER).model_dump()["imaginary"] == "jupiter"
    assert model.model_json_schema()["properties"]["imaginary"]["type"] == "string"
