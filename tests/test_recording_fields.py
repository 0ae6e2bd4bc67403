"""A field of a recording is written once, in the core's dataclass, and reaches every derived form.

The forms are the message of the wire contract, the row of the table, the model of REST, and the
`--json` of the command line.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, make_dataclass, replace
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
)
ENDING = Ending(status="diverged", final_loss=0.25, final_step=12, tokens=34)


def names(value: Any) -> set[str]:
    return {each.name for each in fields(value)}


def test_the_values_of_this_file_differ_from_every_default() -> None:
    """A field that was lost on its way would come back as its default, so none may be sent."""
    plain = RecordingSpec(family="", lr=0.0, parameters=ParameterList((), (), ()))
    for full, default in ((SPEC, plain), (RECORDING, Recording(spec=plain)), (ENDING, Ending())):
        assert [
            name for name in names(full) if getattr(full, name) == getattr(default, name)
        ] == []


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
    with open_store(f"sqlite:///{tmp_path}/registry.db") as store:
        store.start(SPEC)
        ended = store.finish(SPEC.id, 0, ENDING)
        found = store.recording(SPEC.id)
    assert found.spec == SPEC
    assert {name: getattr(found, name) for name in names(ENDING)} == {
        name: getattr(ENDING, name) for name in names(ENDING)
    }
    assert ended.final_step == ENDING.final_step


def test_every_recording_field_has_a_column() -> None:
    derived = {"spec", "parameters", "family", "tags"}  # tables of their own
    assert (names(RECORDING) | names(SPEC)) - derived <= set(tables.recordings.c.keys())
