"""Clients that stall, vanish or send garbage do not affect other clients."""

from __future__ import annotations

import os
import random
import socket
import threading
from pathlib import Path

import grpc
import pytest
from waiting import until

from flerm_proto import recording_messages
from flerm_proto.v1 import registry_pb2 as pb
from flerm_proto.v1 import registry_pb2_grpc as rpc
from flerm_server.server import Server
from flerm_server.settings import ListenAddress, Settings
from tests.conftest import RegistryProcess, StartRegistry
from tests.server.samples import family, long_recording, row, spec

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
EMPTY_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
SETTINGS_TAKEN = b"\x00\x00\x00\x04\x01\x00\x00\x00\x00"
MIB = 1 << 20


def resident(registry: RegistryProcess) -> int:
    pages = int(Path(f"/proc/{registry.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def descriptors(registry: RegistryProcess) -> int:
    return len(list(Path(f"/proc/{registry.process.pid}/fd").iterdir()))


def connect(address: str, data: bytes) -> socket.socket:
    host, port = address.rsplit(":", 1)
    connection = socket.create_connection((host, int(port)), timeout=20)
    connection.sendall(data)
    return connection


def test_clients_that_stop_reading_delay_no_others(start_registry: StartRegistry):
    """Eight clients stop in the middle of 32 MB each.

    The server holds a few messages of 1 MiB for each, and other clients append.
    """
    registry = start_registry()
    with grpc.insecure_channel(registry.grpc) as channel:
        stub = rpc.RegistryStub(channel)
        recording = long_recording(stub, rows=4000)
        before = resident(registry)
        channels = [
            grpc.insecure_channel(registry.grpc, options=[("grpc.use_local_subchannel_pool", 1)])
            for _ in range(8)
        ]
        streams = [
            rpc.RegistryStub(each).GetTrajectory(pb.GetTrajectoryRequest(recording_id=recording))
            for each in channels
        ]
        for stream in streams:
            assert next(stream).header.rows == 4000
        other = spec(family())
        stub.StartRecording(
            pb.StartRecordingRequest(spec=recording_messages.spec_to_proto(other)), timeout=20
        )
        for step in range(1, 101):
            request = pb.AppendRequest(
                recording_id=other.id,
                measurements=[recording_messages.measurement_to_proto(row(step))],
            )
            assert stub.Append(request, timeout=5).committed == 1
        assert resident(registry) - before < 8 * 16 * MIB
        for each in channels:
            each.close()


def test_half_open_connections_leave_room_for_others(start_registry: StartRegistry):
    registry = start_registry()
    with grpc.insecure_channel(registry.grpc) as channel:
        stub = rpc.RegistryStub(channel)
        stub.ServerInfo(pb.ServerInfoRequest(), timeout=20)
        before = descriptors(registry)
        # Some send nothing, some stop within the preface of HTTP/2, some within a frame.
        beginnings = (b"", PREFACE[:10], PREFACE + EMPTY_SETTINGS + b"\x00\x00\xff\x00")
        connections = [connect(registry.grpc, beginnings[at % 3]) for at in range(300)]
        for _ in range(20):
            stub.ServerInfo(pb.ServerInfoRequest(), timeout=5)
        for connection in connections:
            connection.close()
        until(
            lambda: descriptors(registry) <= before + 2,
            "the server kept connections that were closed",
        )


def test_a_peer_that_vanished_is_dropped(tmp_path: Path):
    """The peer takes part in the handshake and then answers nothing, not even a ping."""
    here = ListenAddress("127.0.0.1", 0)
    server = Server(
        Settings(
            db=f"sqlite:///{tmp_path}/r.db",
            grpc=here,
            http=here,
            drain_seconds=1,
            keepalive_seconds=1,
        )
    )
    server.start()
    try:
        with connect(server.grpc_address.text, PREFACE + EMPTY_SETTINGS + SETTINGS_TAKEN) as peer:
            while peer.recv(65536):
                pass  # until the server closes the connection; otherwise the timeout fails the test
    finally:
        server.stop()


def test_random_bytes_at_the_port_leave_nothing_behind(start_registry: StartRegistry):
    registry = start_registry()
    source = random.Random(0)

    def talk() -> None:
        for _ in range(100):
            data = source.randbytes(source.randint(1, 2000))
            begin = source.choice((b"", PREFACE, PREFACE + EMPTY_SETTINGS))
            try:
                with connect(registry.grpc, begin + data) as connection:
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65536):
                        pass
            except (ConnectionResetError, BrokenPipeError):
                continue  # the server may close a connection that sends garbage

    with grpc.insecure_channel(registry.grpc) as channel:
        stub = rpc.RegistryStub(channel)
        stub.ServerInfo(pb.ServerInfoRequest(), timeout=20)
        before = descriptors(registry)
        threads = [threading.Thread(target=talk, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stub.ServerInfo(pb.ServerInfoRequest(), timeout=5)
        until(
            lambda: descriptors(registry) <= before + 2,
            "the server kept connections that were closed",
        )


def test_what_is_no_http_fills_no_log(start_registry: StartRegistry):
    registry = start_registry()
    before = len(registry.output)
    upgrade = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close, Upgrade\r\n"
    for sent in (b"\x16\x03\x01 no HTTP\r\n\r\n", upgrade + b"Upgrade: websocket\r\n\r\n"):
        with connect(registry.http.removeprefix("http://"), sent) as connection:
            while connection.recv(65536):
                pass
    assert registry.stop() == 0
    until(lambda: "stopping" in registry.output[-1], "the log did not end")
    assert len(registry.output) == before + 1, registry.output


@pytest.mark.parametrize("clients", [8, pytest.param(64, marks=pytest.mark.slow)])
def test_many_clients_at_once_and_every_row_is_there_once(
    start_registry: StartRegistry, clients: int
):
    registry = start_registry()
    rows, errors, ids = 40, [], []

    def client() -> None:
        try:
            with grpc.insecure_channel(
                registry.grpc, options=[("grpc.use_local_subchannel_pool", 1)]
            ) as channel:
                stub = rpc.RegistryStub(channel)
                sent = spec(family())
                stub.StartRecording(
                    pb.StartRecordingRequest(spec=recording_messages.spec_to_proto(sent)),
                    timeout=60,
                )
                for step in range(1, rows + 1):
                    request = pb.AppendRequest(
                        recording_id=sent.id,
                        measurements=[recording_messages.measurement_to_proto(row(step))],
                    )
                    assert stub.Append(request, timeout=60).committed == 1
                ids.append(sent.id)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=client, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with grpc.insecure_channel(registry.grpc) as channel:
        stub = rpc.RegistryStub(channel)
        for recording in ids:
            chunks = stub.GetTrajectory(pb.GetTrajectoryRequest(recording_id=recording), timeout=20)
            assert [step for chunk in chunks for step in chunk.rows.steps] == list(
                range(1, rows + 1)
            )
