"""The wire contract only grows: what clients of earlier releases send still means the same.

`proto/released/` keeps the descriptors of each release, written by `protoc --descriptor_set_out`.
"""

from __future__ import annotations

from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, struct_pb2, timestamp_pb2
from google.protobuf.message_factory import GetMessageClass

from flerm_core.records.packing import pack
from flerm_core.records.recording import RecordingSpec
from flerm_proto.v1 import registry_pb2 as pb
from tests.conftest import RegistryProcess
from tests.server.samples import family, spec

RELEASED = sorted((Path(__file__).parents[2] / "proto" / "released").glob("*.binpb"))
each_release = pytest.mark.parametrize("release", RELEASED, ids=lambda path: path.stem)


def released_file(release: Path) -> descriptor_pb2.FileDescriptorProto:
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(release.read_bytes()).file
    return file


def present_file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    return file


def messages(file: descriptor_pb2.FileDescriptorProto) -> dict[str, descriptor_pb2.DescriptorProto]:
    """All message types by name, nested ones (entries of maps) too."""
    found: dict[str, descriptor_pb2.DescriptorProto] = {}

    def add(prefix: str, message: descriptor_pb2.DescriptorProto) -> None:
        found[prefix + message.name] = message
        for nested in message.nested_type:
            add(f"{prefix}{message.name}.", nested)

    for message in file.message_type:
        add("", message)
    return found


def meaning(field: descriptor_pb2.FieldDescriptorProto) -> tuple[object, ...]:
    """What the bytes of a field depend on, and what code calls it."""
    return (
        field.name,
        field.number,
        field.type,
        field.type_name,
        field.label,
        field.proto3_optional,
        field.HasField("oneof_index"),
    )


def breaking(
    old: descriptor_pb2.FileDescriptorProto, new: descriptor_pb2.FileDescriptorProto
) -> list[str]:
    """What was removed, renumbered, renamed or given another type."""
    found = [] if old.package == new.package else [f"package {old.package} became {new.package}"]
    now = messages(new)
    for name, message in messages(old).items():
        if name not in now:
            found.append(f"message {name} is gone")
            continue
        fields = {field.number: meaning(field) for field in now[name].field}
        found += [
            f"field {field.number} of {name} was {meaning(field)} and is {fields.get(field.number)}"
            for field in message.field
            if fields.get(field.number) != meaning(field)
        ]
    methods = {
        (service.name, each.name): each for service in new.service for each in service.method
    }
    found += [
        f"rpc {each.name} is gone or another"
        for service in old.service
        for each in service.method
        if methods.get((service.name, each.name)) != each
    ]
    return found


@each_release
def test_nothing_that_was_released_changed(release: Path):
    assert breaking(released_file(release), present_file()) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda file: file.message_type.pop(), "is gone"),
        (lambda file: file.message_type[1].field.pop(), "is None"),
        (lambda file: setattr(file.message_type[1].field[0], "number", 77), "field 1 of"),
        (lambda file: setattr(file.message_type[1].field[0], "name", "other"), "field 1 of"),
        (lambda file: setattr(file.message_type[1].field[0], "type", 3), "field 1 of"),
        (lambda file: file.service[0].method.pop(), "rpc "),
        (
            lambda file: setattr(file.service[0].method[0], "server_streaming", True),
            "rpc ServerInfo is gone or another",
        ),
        (
            lambda file: setattr(file, "package", "flerm.registry.v2"),
            "package flerm.registry.v1 became",
        ),
    ],
)
def test_what_would_break_a_client_is_found(change, sentence: str):
    changed = present_file()
    change(changed)
    assert any(sentence in each for each in breaking(present_file(), changed))


class ReleasedClient:
    """Calls the service by the message types of a release.

    kind: the message classes, by name.
    """

    def __init__(self, release: Path, channel: grpc.Channel) -> None:
        pool = descriptor_pool.DescriptorPool()
        for dependency in (struct_pb2, timestamp_pb2):
            pool.AddSerializedFile(dependency.DESCRIPTOR.serialized_pb)
        file = pool.AddSerializedFile(
            released_file(release).SerializeToString()
        ) or pool.FindFileByName(released_file(release).name)
        messages = file.message_types_by_name.items()
        self.kind = {name: GetMessageClass(message) for name, message in messages}
        self._service = file.services_by_name["Registry"]
        self._channel = channel

    def call(self, name: str, request):
        method = self._service.methods_by_name[name]
        streams = method.server_streaming
        make = self._channel.unary_stream if streams else self._channel.unary_unary
        encode = self.kind[method.input_type.name].SerializeToString
        answer = self.kind[method.output_type.name].FromString
        return make(f"/{self._service.full_name}/{name}", encode, answer)(request, timeout=20)

    def start_request(self, sent: RecordingSpec):
        start = self.kind["StartRecordingRequest"]()
        start.spec.id, start.spec.family, start.spec.lr = sent.id, sent.family, sent.lr
        start.spec.role, start.spec.variant = "base", "plain"
        start.spec.optimizer, start.spec.world_size = "Adam", 1
        estimator = start.spec.estimator
        estimator.name, estimator.samples, estimator.warmup = "example", 1, 8
        estimator.start = 1
        for name, shape, band in zip(
            sent.parameters.names, sent.parameters.shapes, sent.parameters.bands, strict=True
        ):
            start.spec.parameters.names.append(name)
            start.spec.parameters.shapes.add().dims.extend(shape)
            start.spec.parameters.bands.append(band)
        return start


@each_release
def test_a_client_of_the_release_works(release: Path, registry: RegistryProcess):
    """It starts, appends, reads back and ends with the message types of its own time."""
    values = np.array([[1, 2, np.nan], [3, 4, 5]], np.float32)
    sent = spec(family())
    with grpc.insecure_channel(registry.grpc) as channel:
        client = ReleasedClient(release, channel)
        kind, call = client.kind, client.call
        assert "v1" in call("ServerInfo", kind["ServerInfoRequest"]()).api_versions
        assert call("StartRecording", client.start_request(sent)).created
        append = kind["AppendRequest"](recording_id=sent.id)
        for step, row in zip((1, 101), values, strict=True):
            append.measurements.add(step=step, fslr=pack(row), loss=2.0)
        assert call("Append", append).committed == 2
        header, rows = call("GetTrajectory", kind["GetTrajectoryRequest"](recording_id=sent.id))
        assert list(header.header.parameters.names) == list(sent.parameters.names)
        assert list(rows.rows.steps) == [1, 101]
        assert rows.rows.values == values.tobytes()
        finish = kind["FinishRecordingRequest"](
            recording_id=sent.id, status="completed", final_loss=2.0
        )
        ended = call("FinishRecording", finish)
        assert (ended.status, ended.rows) == ("completed", 2)
        asked = kind["GetTargetsRequest"](family=sent.family, lr=sent.lr)
        targets = list(call("GetTargets", asked))
        assert list(targets[0].header.sources) == [sent.id]
        assert call("GetBest", kind["GetBestRequest"](family=sent.family)).lr == sent.lr
