"""The process: what it announces, how it ends, what it refuses to do."""

from __future__ import annotations

import asyncio
import ctypes
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from typer.testing import CliRunner

from flerm_core.errors import InvalidInput, Unreachable
from flerm_core.records.recording import RecordingSpec
from flerm_proto import recording_messages
from flerm_proto.v1 import registry_pb2 as pb
from flerm_proto.v1 import registry_pb2_grpc as rpc
from flerm_server.cli import app
from flerm_server.server import listen, run
from flerm_server.settings import ListenAddress, Settings
from flerm_server.store.sql import schema
from tests.conftest import PostgresCluster, RegistryProcess, StartRegistry
from tests.server.conftest import migrate
from tests.server.samples import attempt, family, long_recording, row, spec


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_announces_its_addresses_and_stops_cleanly(
    start_registry: StartRegistry, number: signal.Signals
):
    registry = start_registry()
    assert registry.output[0] == f"registry: {registry.address}  {registry.http}/\n"
    with grpc.insecure_channel(registry.grpc) as channel:
        info = rpc.RegistryStub(channel).ServerInfo(pb.ServerInfoRequest(), timeout=10)
        assert (info.schema_revision, list(info.api_versions), info.max_rows_per_append) == (
            schema.head(),
            ["v1"],
            1000,
        )
        health = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=10
        )
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        assert (
            "flerm.registry.v1.Registry"
            in ProtoReflectionDescriptorDatabase(channel).get_services()
        )
    assert httpx.get(f"{registry.http}/healthz").json()["status"] == "alive"
    assert registry.stop(number) == 0
    assert '"event": "stopping"' in "".join(registry.output)


def test_what_was_acknowledged_is_there_after_a_kill(start_registry: StartRegistry):
    registry = start_registry()
    sent = spec(family())
    with grpc.insecure_channel(registry.grpc) as channel:
        stub = rpc.RegistryStub(channel)
        stub.StartRecording(
            pb.StartRecordingRequest(spec=recording_messages.spec_to_proto(sent)), timeout=10
        )
        request = pb.AppendRequest(
            recording_id=sent.id, measurements=[recording_messages.measurement_to_proto(row(1))]
        )
        assert stub.Append(request, timeout=10).committed == 1
    assert registry.stop(signal.SIGKILL) == -signal.SIGKILL
    again = start_registry(db=registry.db)
    with grpc.insecure_channel(again.grpc) as channel:
        found = rpc.RegistryStub(channel).GetRecording(
            pb.GetRecordingRequest(recording_id=sent.id), timeout=10
        )
        assert (found.rows, found.status) == (1, "running")


def test_a_call_in_flight_ends_before_the_server_does(start_registry: StartRegistry):
    """A client that reads a trajectory when SIGTERM comes may read it to its end in that time."""
    registry = start_registry(options=("--drain", "10"))
    with grpc.insecure_channel(registry.grpc) as channel:
        stub = rpc.RegistryStub(channel)
        chunks = stub.GetTrajectory(
            pb.GetTrajectoryRequest(recording_id=long_recording(stub, rows=4000)), timeout=20
        )
        assert next(chunks).header.rows == 4000
        registry.process.send_signal(signal.SIGTERM)
        wait_until(lambda: '"event": "stopping"' in "".join(registry.output))
        assert sum(len(chunk.rows.steps) for chunk in chunks) == 4000
    assert registry.process.wait(30) == 0


def test_it_serves_postgresql(start_registry: StartRegistry, postgres: PostgresCluster):
    registry = start_registry(db=migrate(postgres.new_database()))
    assert httpx.get(f"{registry.http}/readyz").json()["schema_revision"] == schema.head()
    assert registry.stop() == 0


def wait_until(holds: Callable[[], bool]) -> None:
    """Polls what has no event of its own to wait for: another process's output."""
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def refused(*options: str) -> tuple[int, str]:
    ended = CliRunner().invoke(
        app, ["serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", *options]
    )
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    return ended.exit_code, ended.stderr


def test_it_refuses_what_it_cannot_do_in_one_sentence(tmp_path: Path, postgres: PostgresCluster):
    db = f"sqlite:///{tmp_path}/registry.db"
    code, sentence = refused("--db", db, "--http", "0.0.0.0:0")
    assert (
        code,
        "it has no tokens; make the first with" in sentence,
        "--insecure" in sentence,
    ) == (5, True, True)
    code, sentence = refused("--db", db, "--grpc", "localhost")
    assert (code, "grpc 'localhost': HOST:PORT is allowed" in sentence) == (2, True)
    code, sentence = refused("--db", postgres.new_database())
    assert (code, "flerm db upgrade" in sentence) == (5, True)
    code, sentence = refused("--db", f"sqlite:///{tmp_path}/no/folder.db")
    assert (code, "unable to open database file" in sentence) == (4, True)
    (tmp_path / "damaged.db").write_text("no database, although somebody called it one " * 20)
    code, sentence = refused("--db", f"sqlite:///{tmp_path}/damaged.db")
    assert (
        code,
        "damaged.db cannot be read: file is not a database; restore a backup" in sentence,
    ) == (4, True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for side in ("grpc", "http"):
            code, sentence = refused("--db", db, f"--{side}", f"127.0.0.1:{port}")
            assert (code, f"{side} 127.0.0.1:{port}: cannot listen there" in sentence) == (5, True)


def test_a_program_that_serves_has_its_own_signal_handlers_back(tmp_path: Path):
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Unreachable):
        run(Settings(db=f"sqlite:///{tmp_path}/no/folder.db"), lambda server: None)
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before


def test_it_ends_when_it_cannot_announce_itself(tmp_path: Path):
    command = [
        sys.executable,
        "-m",
        "flerm_server.cli",
        "serve",
        "--grpc",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
    ]
    options = [
        "--db",
        f"sqlite:///{tmp_path}/registry.db",
        "--announce",
        f"{tmp_path}/no/folder.json",
        "--log-level",
        "error",
    ]
    ended = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (5, 1)
    assert f"announce {tmp_path}/no/folder.json: cannot be written" in ended.stderr


def test_it_is_told_to_stop_whichever_thread_the_signal_comes_to(start_registry: StartRegistry):
    """The kernel may give the signal to any thread, but Python runs handlers on its main thread."""
    process = start_registry().process
    thread = max(int(each.name) for each in Path(f"/proc/{process.pid}/task").iterdir())
    assert thread != process.pid
    ctypes.CDLL(None).tgkill(process.pid, thread, signal.SIGTERM)
    assert process.wait(30) == 0


def test_insecure_lets_it_listen_everywhere(start_registry: StartRegistry):
    registry = start_registry(http="0.0.0.0:0", options=("--insecure",))
    url = registry.http.replace("0.0.0.0", "127.0.0.1")
    assert httpx.get(f"{url}/healthz", headers={"Host": "registry.example"}).status_code == 200
    for nowhere in (
        "a b",
        "user@registry.example",
        "registry.example/path",
        "<b>",
        "[::1",
        "registry.example:port",
    ):
        answer = httpx.get(f"{url}/", headers={"Host": nowhere})
        assert (answer.status_code, answer.headers["content-type"]) == (
            400,
            "application/problem+json",
        ), nowhere


@pytest.mark.parametrize("text", ["", "host", "host:", ":80", "host:99999", "::1:80", "host:http"])
def test_addresses_are_checked(text: str):
    with pytest.raises(InvalidInput, match="HOST:PORT is allowed"):
        ListenAddress.parse("http", text)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0, 1e300])
def test_durations_are_checked(seconds: float):
    for field in ("lease_seconds", "drain_seconds", "keepalive_seconds", "connection_seconds"):
        with pytest.raises(
            InvalidInput, match=f"{field}: .* is not allowed; it must be a number of seconds"
        ):
            Settings(**{field: seconds})


def test_addresses_are_read():
    assert ListenAddress.parse("http", "[::1]:80") == ListenAddress("::1", 80)
    assert ListenAddress("::1", 80).text == "[::1]:80"
    assert [
        ListenAddress(host, 1).loopback
        for host in ("127.0.0.9", "::1", "localhost", "10.0.0.1", "example.org")
    ] == [
        True,
        True,
        True,
        False,
        False,
    ]


def garbage(address: str, data: bytes) -> None:
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass


def test_garbage_at_the_ports_harms_nobody(registry: RegistryProcess):
    for data in (
        b"\x00" * 1000,
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 500,
        b"\x16\x03\x01\x02\x00",
    ):
        for address in (registry.grpc, registry.http.removeprefix("http://")):
            try:
                garbage(address, data)
            except ConnectionResetError:
                continue  # hanging up on garbage is an answer too
    assert httpx.get(f"{registry.http}/readyz").status_code == 200


def status(stub: rpc.RegistryStub, method: str, request: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        getattr(stub, method)(request, timeout=10)
    return caught.value.code(), caught.value.details()


def bad_requests(sent: RecordingSpec) -> list[tuple[str, Any, grpc.StatusCode, str]]:
    """Methods with a request that they refuse, the status, and a part of the sentence.

    sent: a recording that was started.
    """
    invalid, unknown = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
    message = recording_messages.spec_to_proto(sent)
    short, torn = (
        pb.AppendRequest(
            recording_id=sent.id, measurements=[pb.Measurement(step=1, fslr=b"\x00" * length)]
        )
        for length in (8, 7)
    )
    stranger = pb.AppendRequest(recording_id="nobody")
    nameless = pb.StartRecordingRequest(spec=recording_messages.spec_to_proto(spec("bad name")))
    lost = pb.StartRecordingRequest(spec=message, attempt=pb.Attempt(resume_at=5))
    infinite = pb.StartRecordingRequest(spec=message)
    infinite.spec.config["x"] = float("nan")
    late = pb.StartRecordingRequest(spec=message, attempt=pb.Attempt(id=attempt(0, 1).id))
    late.attempt.started_at.seconds = 2**60
    done = pb.FinishRecordingRequest(recording_id=sent.id, status="done")
    return [
        ("Append", short, invalid, "values at step 1"),
        ("Append", torn, invalid, "7 packed bytes"),
        ("Append", stranger, unknown, "'nobody' is not in this registry"),
        ("StartRecording", pb.StartRecordingRequest(), invalid, "id: ''"),
        ("StartRecording", nameless, invalid, "family: 'bad name'"),
        ("StartRecording", lost, invalid, "a resume (resume_at 5) needs one"),
        ("StartRecording", infinite, invalid, "spec: "),
        ("StartRecording", late, invalid, "attempt: "),
        ("RegisterFamily", pb.RegisterFamilyRequest(name=""), invalid, "family: ''"),
        ("ListRecordings", pb.ListRecordingsRequest(page_size=-1), invalid, "page_size: -1"),
        ("FinishRecording", done, invalid, "status: 'done'"),
        ("RenewLease", pb.RenewLeaseRequest(recording_id="x"), unknown, "'x'"),
        ("GetBest", pb.GetBestRequest(family="none/such"), unknown, "'none/such'"),
    ]


def test_bad_input_gets_a_status_and_a_sentence(registry: RegistryProcess):
    sent = spec(family())
    start = pb.StartRecordingRequest(spec=recording_messages.spec_to_proto(sent))
    with grpc.insecure_channel(registry.grpc) as channel:
        stub = rpc.RegistryStub(channel)
        stub.StartRecording(start, timeout=10)
        for method, request, code, part in bad_requests(sent):
            found, sentence = status(stub, method, request)
            assert (found, part in sentence) == (code, True), sentence
            assert "\n" not in sentence


def test_the_parts_of_an_answer_do_not_wait_for_each_other():
    """With Nagle's algorithm each answer on an open connection took 40 ms longer."""
    delays: list[int] = []

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted = writer.get_extra_info("socket")
        delays.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async def ask() -> None:
        listener = listen(ListenAddress("127.0.0.1", 0))
        port = listener.getsockname()[1]
        async with await asyncio.start_server(answer, sock=listener):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await reader.read()
            writer.close()

    with ThreadPoolExecutor(1) as thread:  # in this one, Playwright's event loop may run
        thread.submit(asyncio.run, ask()).result()
    assert delays == [1]
