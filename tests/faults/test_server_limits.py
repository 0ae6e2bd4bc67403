"""Every limit is named where it refuses, and the server survives whatever its ports receive."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import httpx
import pytest
from held_calls import hold_appends, hold_trajectories
from waiting import until

from flerm_proto import recording_messages
from flerm_proto.v1 import registry_pb2 as pb
from flerm_proto.v1 import registry_pb2_grpc as rpc
from flerm_server import server as server_module
from flerm_server.auth.sql_tokens import SqlTokenStore
from flerm_server.http import middleware, request_timeout
from flerm_server.rpc import admission
from flerm_server.server import Server
from flerm_server.settings import ListenAddress, Settings
from flerm_server.store.sql.store import open_store
from tests.conftest import RegistryProcess, StartRegistry
from tests.server.samples import family, row, spec

HERE = ListenAddress("127.0.0.1", 0)
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


@contextmanager
def served(folder: Path, **settings: object) -> Iterator[Server]:
    """A server in this process."""
    server = Server(
        Settings(
            db=f"sqlite:///{folder}/registry.db", grpc=HERE, http=HERE, drain_seconds=1, **settings
        )
    )
    server.start()
    try:
        yield server
    finally:
        server.stop()


def refusal(call: object) -> str:
    """The sentence with which a limit refuses a call."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() == EXHAUSTED
    return caught.value.details()


def started(stub: rpc.RegistryStub) -> str:
    sent = spec(family())
    stub.StartRecording(
        pb.StartRecordingRequest(spec=recording_messages.spec_to_proto(sent)), timeout=10
    )
    return sent.id


def append(recording: str, *steps: int) -> pb.AppendRequest:
    return pb.AppendRequest(
        recording_id=recording,
        measurements=[recording_messages.measurement_to_proto(row(step)) for step in steps],
    )


def test_an_oversized_message_is_refused_by_name_and_the_next_is_served(registry: RegistryProcess):
    with grpc.insecure_channel(
        registry.grpc, options=[("grpc.max_send_message_length", -1)]
    ) as channel:
        stub = rpc.RegistryStub(channel)
        recording = started(stub)
        large = pb.AppendRequest(
            recording_id=recording, measurements=[pb.Measurement(step=1, fslr=bytes(5 << 20))]
        )
        name = (
            f"max_message_bytes: a message of {large.ByteSize()} bytes; at most 4194304 are allowed"
        )
        assert refusal(lambda: stub.Append(large, timeout=20)).startswith(name)
        huge = pb.AppendRequest(
            recording_id=recording, measurements=[pb.Measurement(step=1, fslr=bytes(20 << 20))]
        )
        assert "larger than max" in refusal(lambda: stub.Append(huge, timeout=20))
        assert stub.Append(append(recording, 1), timeout=20).committed == 1


def test_an_oversized_body_is_refused_by_name(registry: RegistryProcess):
    with httpx.Client(base_url=registry.http, timeout=20) as http:
        for content in (bytes(9 << 20), (bytes(1 << 20) for _ in range(9))):
            answer = http.post("/api/v1/match", content=content)
            assert (answer.status_code, answer.json()["detail"].partition(":")[0]) == (
                413,
                "max_body_bytes",
            )
        assert http.get("/readyz").status_code == 200


def test_appends_in_flight_are_limited_by_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(admission, "APPENDS_PER_CLIENT", 2)
    released = hold_appends(monkeypatch, lambda request: request.measurements[0].step < 3)
    with served(tmp_path) as server, grpc.insecure_channel(server.grpc_address.text) as channel:
        stub = rpc.RegistryStub(channel)
        recording = started(stub)
        in_flight = [stub.Append.future(append(recording, step), timeout=20) for step in (1, 2)]
        until(
            lambda: stub.GetRecording(pb.GetRecordingRequest(recording_id=recording)).rows == 2,
            "no rows",
        )
        assert refusal(lambda: stub.Append(append(recording, 3), timeout=10)).startswith(
            "appends_per_client: 2 appends"
        )
        with grpc.insecure_channel(
            server.grpc_address.text, options=[("grpc.use_local_subchannel_pool", 1)]
        ) as other:
            assert rpc.RegistryStub(other).Append(append(recording, 3), timeout=10).committed == 1
        released.set()
        assert [each.result().committed for each in in_flight] == [1, 1]
        deadline = time.monotonic() + 5
        while True:  # the server counts a call as ended shortly after its client got the answer
            try:
                assert stub.Append(append(recording, 4), timeout=10).committed == 1
                break
            except grpc.RpcError:
                assert time.monotonic() < deadline


def test_streams_leave_threads_for_other_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server_module, "THREADS_FOR_UNARY_CALLS", server_module.THREADS - 2)
    released = hold_trajectories(monkeypatch)
    with served(tmp_path) as server, grpc.insecure_channel(server.grpc_address.text) as channel:
        stub = rpc.RegistryStub(channel)
        recording = started(stub)
        asked = pb.GetTrajectoryRequest(recording_id=recording)
        streams = [stub.GetTrajectory(asked, timeout=20) for _ in range(2)]
        assert [next(stream).header.rows for stream in streams] == [0, 0]
        assert refusal(lambda: list(stub.GetTrajectory(asked, timeout=10))).startswith(
            "streams: 2 streams are open"
        )
        assert stub.Append(append(recording, 3), timeout=10).committed == 1
        released.set()
        for stream in streams:
            assert list(stream) == []


def test_recordings_of_one_token_are_limited(tmp_path: Path):
    store = open_store(f"sqlite:///{tmp_path}/registry.db")
    (_, mine), (_, others) = (
        SqlTokenStore(store.engine).create("mine", "write"),
        SqlTokenStore(store.engine).create("others", "write"),
    )
    with (
        served(tmp_path, recordings_per_token=2) as server,
        grpc.insecure_channel(server.grpc_address.text) as channel,
    ):

        def start(token: str, recording: object) -> pb.StartRecordingResponse:
            request = pb.StartRecordingRequest(spec=recording_messages.spec_to_proto(recording))
            return rpc.RegistryStub(channel).StartRecording(
                request, timeout=10, metadata=[("authorization", f"Bearer {token}")]
            )

        first, second, third = (spec(family()) for _ in range(3))
        assert start(mine.text, first).created and start(mine.text, second).created
        assert refusal(lambda: start(mine.text, third)).startswith(
            "recordings_per_token: token mine ("
        )
        assert not start(mine.text, first).created  # sent again
        assert start(others.text, third).created
    store.close()


def test_a_request_whose_head_or_body_does_not_arrive_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A slowloris attack: each byte comes in time, the whole request never."""
    monkeypatch.setattr(request_timeout, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(middleware, "BODY_SECONDS", 0.5)
    with served(tmp_path) as server:
        address = ("127.0.0.1", server.http_address.port)
        for opening in (
            b"GET / HTTP/1.1\r\n",
            b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HTTP/1.1\r\n",
        ):
            with socket.create_connection(address, timeout=10) as slow:
                slow.sendall(opening)
                began = time.monotonic()
                with pytest.raises(OSError):
                    while time.monotonic() < began + 10:
                        slow.sendall(b"X-A: b\r\n")
                        time.sleep(0.05)
                assert time.monotonic() < began + 5
        with socket.create_connection(address, timeout=10) as slow:
            slow.sendall(
                b"POST /api/v1/match HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{"
            )
            assert b"body_seconds" in b"".join(iter(lambda: slow.recv(65536), b""))
        with httpx.Client(base_url=f"http://{server.http_address.text}") as http:
            for _ in range(
                3
            ):  # a client that pauses between two requests of one connection is still served
                assert http.get("/readyz").status_code == 200
                time.sleep(0.2)


@pytest.mark.parametrize(
    "count", [400, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(300)])]
)
def test_thousands_of_connections_are_refused_or_served(start_registry: StartRegistry, count: int):
    """Half of them send nothing, half stop within a request.

    Other clients are answered meanwhile and afterwards.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    registry = start_registry()
    ports = [registry.grpc, registry.http.removeprefix("http://")]
    openings = (
        b"",
        b"GET / HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
    )
    held = []
    try:
        for at in range(count):
            host, port = ports[at % 2].rsplit(":", 1)
            connection = socket.socket()
            connection.setblocking(False)
            connection.connect_ex((host, int(port)))
            held.append((connection, openings[at % 4]))
            if at % 200 == 199:
                time.sleep(0.05)
                for each, opening in held[-200:]:
                    try:
                        each.send(opening)
                    except OSError:
                        continue
        with grpc.insecure_channel(registry.grpc) as channel:
            stub = rpc.RegistryStub(channel)
            assert stub.Append(append(started(stub), 1), timeout=20).committed == 1
        assert httpx.get(f"{registry.http}/readyz", timeout=20).status_code == 200
    finally:
        for connection, _ in held:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert httpx.get(f"{registry.http}/readyz", timeout=20).status_code == 200
    assert '"event": "bug"' not in "".join(registry.output)
