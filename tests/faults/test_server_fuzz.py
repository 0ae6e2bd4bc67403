"""Every RPC with random content in every field.

Each call is answered by a status and a sentence, never by an internal error, and leaves no memory
and no file behind.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flerm_proto import recording_messages
from flerm_proto.v1 import registry_pb2 as pb
from flerm_proto.v1 import registry_pb2_grpc as rpc
from tests.conftest import RegistryProcess, launch_registry
from tests.server.conftest import migrate
from tests.server.samples import row, spec

SERVICE = pb.DESCRIPTOR.services_by_name["Registry"]
METHODS = [method.name for method in SERVICE.methods]
FAMILY, RECORDING = "fuzz/known", "0b7f1f0e-57a3-4f0d-8a8e-6f2a9c1d3e5b"
BUGS = (
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAVAILABLE,
)
AT_ONCE, ROUNDS = 32, 10
CALLS = [1_000, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]

TEXTS = st.one_of(
    st.sampled_from(
        [
            "",
            FAMILY,
            RECORDING,
            "base",
            "plain",
            "completed",
            "example",
            "layers.*",
            "layers.0.weight",
            "exact",
        ]
    ),
    st.text(max_size=40),
)
FLOATS = st.one_of(st.sampled_from([0.0, 1e-3, -1.0, float("nan"), float("inf")]), st.floats())
SCALARS = {
    FieldDescriptor.TYPE_STRING: TEXTS,
    FieldDescriptor.TYPE_BYTES: st.one_of(st.just(bytes(12)), st.binary(max_size=24)),
    FieldDescriptor.TYPE_DOUBLE: FLOATS,
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_INT32: st.one_of(st.integers(-2, 20), st.integers(-(2**31), 2**31 - 1)),
    FieldDescriptor.TYPE_INT64: st.one_of(st.integers(-2, 2000), st.integers(-(2**63), 2**63 - 1)),
}


def repeated(field: FieldDescriptor) -> bool:
    return (
        field.is_repeated
        if hasattr(field, "is_repeated")
        else field.label == FieldDescriptor.LABEL_REPEATED
    )


def values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    """Values of one entry of a field."""
    if field.message_type is None:
        return SCALARS.get(field.type, st.integers(0, 1))
    return messages(field.message_type, depth + 1)


def messages(descriptor: Descriptor, depth: int = 0) -> st.SearchStrategy[Any]:
    """Messages of a type with some of their fields set to random values."""

    @st.composite
    def build(draw: st.DrawFn) -> Any:
        message = GetMessageClass(descriptor)()
        for field in descriptor.fields:
            if depth > 3 or not draw(st.booleans()):
                continue
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
                held = getattr(message, field.name)
                for each in draw(st.lists(values(key, depth), max_size=2)):
                    if value.message_type is None:
                        held[each] = draw(values(value, depth))
                    else:
                        held[each].CopyFrom(draw(values(value, depth)))
            elif repeated(field):
                getattr(message, field.name).extend(
                    draw(st.lists(values(field, depth), max_size=3))
                )
            elif field.message_type is not None:
                getattr(message, field.name).CopyFrom(draw(values(field, depth)))
            else:
                setattr(message, field.name, draw(values(field, depth)))
        return message

    return build()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def fuzzed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A registry on each database, with one recording that random messages may name."""
    folder = tmp_path_factory.mktemp("fuzz")
    on_file = request.param == "sqlite"
    db = (
        f"sqlite:///{folder}/registry.db"
        if on_file
        else migrate(request.getfixturevalue("postgres").new_database())
    )
    registry = launch_registry(db, folder / "announce.json")
    with grpc.insecure_channel(registry.grpc) as channel:
        stub = rpc.RegistryStub(channel)
        known = spec(FAMILY, id=RECORDING)
        stub.StartRecording(
            pb.StartRecordingRequest(spec=recording_messages.spec_to_proto(known)), timeout=20
        )
        stub.Append(
            pb.AppendRequest(
                recording_id=RECORDING,
                measurements=[recording_messages.measurement_to_proto(row(1))],
            ),
            timeout=20,
        )
        yield registry, stub
    assert registry.stop() == 0
    assert '"event": "bug"' not in "".join(registry.output)


def call(stub: rpc.RegistryStub, method: str, request: Any) -> tuple[grpc.StatusCode, str]:
    """The status of a call, and its sentence."""
    kind = SERVICE.methods_by_name[method]
    try:
        answer = getattr(stub, method)(
            iter([request]) if kind.client_streaming else request, timeout=20
        )
        if kind.server_streaming:
            for _ in answer:
                pass
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


@pytest.mark.parametrize("method", METHODS)
def test_whatever_the_fields_hold_the_answer_is_a_status_and_a_sentence(
    fuzzed: tuple[RegistryProcess, Any], method: str
):
    _, stub = fuzzed

    @settings(
        max_examples=30,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
    )
    @given(messages(SERVICE.methods_by_name[method].input_type))
    def fuzz(request: Any) -> None:
        code, sentence = call(stub, method, request)
        assert code not in BUGS, sentence
        assert "\n" not in sentence and len(sentence) < 2000

    fuzz()


def test_bytes_that_are_no_request_are_the_sender_s_mistake(fuzzed: tuple[RegistryProcess, Any]):
    registry, _ = fuzzed
    with grpc.insecure_channel(registry.grpc) as channel:
        open_to_all = (health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)
        services = [
            SERVICE,
            *(service for file in open_to_all for service in file.services_by_name.values()),
        ]
        for method in (method for service in services for method in service.methods):
            kind = "_".join(
                "stream" if streaming else "unary"
                for streaming in (method.client_streaming, method.server_streaming)
            )
            ask = getattr(channel, kind)(f"/{method.containing_service.full_name}/{method.name}")
            with pytest.raises(grpc.RpcError) as refusal:
                answer = ask(
                    iter([b"\xff\xff"]) if method.client_streaming else b"\xff\xff", timeout=20
                )
                list(answer if method.server_streaming else ())
            assert refusal.value.code() == grpc.StatusCode.INVALID_ARGUMENT, method.name
            assert "message: 2 bytes that are no request of this call" in refusal.value.details()


def held(registry: RegistryProcess) -> tuple[int, int]:
    """Pages of memory and file descriptors."""
    folder = Path(f"/proc/{registry.process.pid}")
    return int((folder / "statm").read_text().split()[1]), len(list((folder / "fd").iterdir()))


@pytest.mark.parametrize("count", CALLS)
def test_thousands_of_bad_calls_leave_nothing_behind(
    fuzzed: tuple[RegistryProcess, Any], count: int
):
    registry, stub = fuzzed
    bad = [
        (
            "Append",
            pb.AppendRequest(
                recording_id="nobody",
                measurements=[recording_messages.measurement_to_proto(row(1))],
            ),
        ),
        (
            "Append",
            pb.AppendRequest(
                recording_id=RECORDING, measurements=[pb.Measurement(step=1, fslr=b"1234567")]
            ),
        ),
        ("RegisterFamily", pb.RegisterFamilyRequest(name="bad name")),
        ("GetRecording", pb.GetRecordingRequest(recording_id="\x00")),
        ("ListRecordings", pb.ListRecordingsRequest(page_token="rubbish")),
        ("GetTrajectory", pb.GetTrajectoryRequest(recording_id=RECORDING, pattern="none*")),
        ("GetTargets", pb.GetTargetsRequest(family=FAMILY, lr=-1)),
        ("StartRecording", pb.StartRecordingRequest()),
    ]

    def calls(count: int) -> None:
        for at in range(count):
            method, request = bad[at % len(bad)]
            assert call(stub, method, request)[0] not in (grpc.StatusCode.OK, *BUGS)

    # First threads, pools and caches grow to their full size, which the greatest number of calls at
    # the same time decides.
    with ThreadPoolExecutor(AT_ONCE) as clients:
        list(clients.map(calls, [50] * AT_ONCE))
    before = held(registry)
    for _ in range(ROUNDS):
        calls(500)
        (earlier, _), before = before, held(registry)
        if before[0] <= earlier * 1.005:
            break
    memory, descriptors = before
    calls(count)
    assert held(registry)[0] <= memory * 1.05
    # Pools renew and open connections to the database as they are needed. A call that leaves a
    # descriptor open would leave hundreds.
    assert held(registry)[1] <= descriptors + 10
