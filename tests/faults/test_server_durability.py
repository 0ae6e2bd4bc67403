"""What was acknowledged is on the disk.

While the database fails, appends are refused and nothing is lost; when it works again, so does the
server.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import httpx
import numpy as np
import psycopg
import pytest

from flerm_core.records.recording import Measurement, ParameterList
from flerm_proto import recording_messages
from flerm_proto.v1 import registry_pb2 as pb
from flerm_proto.v1 import registry_pb2_grpc as rpc
from tests.conftest import PostgresCluster, RegistryProcess, StartRegistry
from tests.server.conftest import migrate
from tests.server.samples import family, spec
from tests.support.small_disk import small_file_system
from tests.support.waiting import until

TENSORS = 500
NAMES = tuple(f"layers.{at}.weight" for at in range(TENSORS))
PARAMETERS = ParameterList(NAMES, ((4,),) * TENSORS, ("other",) * TENSORS)


def start(stub: rpc.RegistryStub) -> str:
    sent = spec(family(), parameters=PARAMETERS)
    stub.StartRecording(
        pb.StartRecordingRequest(spec=recording_messages.spec_to_proto(sent)), timeout=20
    )
    return sent.id


def append(stub: rpc.RegistryStub, recording: str, step: int) -> None:
    row = Measurement(step=step, values=np.random.default_rng(step).random(TENSORS, np.float32))
    request = pb.AppendRequest(
        recording_id=recording, measurements=[recording_messages.measurement_to_proto(row)]
    )
    assert stub.Append(request, timeout=20).committed == 1


def steps(stub: rpc.RegistryStub, recording: str) -> list[int]:
    chunks = stub.GetTrajectory(pb.GetTrajectoryRequest(recording_id=recording), timeout=20)
    return [step for chunk in chunks for step in chunk.rows.steps]


def test_sqlite_syncs_its_log_before_each_acknowledgement(tmp_path: Path):
    """strace writes a line before the traced call returns: what is in its file at the answer came
    before the answer.

    Fails, not skips, without it.
    """
    if shutil.which("strace") is None:
        pytest.fail(
            "strace is not installed: it shows what the server asks of the kernel "
            "(Debian: apt-get install strace)"
        )
    calls, announce = tmp_path / "calls", tmp_path / "announce.json"
    command = [
        "strace",
        "-f",
        "-y",
        "-e",
        "trace=fsync,fdatasync",
        "-e",
        "signal=none",
        "-o",
        str(calls),
        sys.executable,
    ]
    options = [
        "-m",
        "flerm_server.cli",
        "serve",
        "--db",
        f"sqlite:///{tmp_path}/registry.db",
        "--announce",
        str(announce),
    ]
    ports = ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    process = subprocess.Popen(
        [*command, *options, *ports], stdout=subprocess.PIPE, text=True, start_new_session=True
    )

    def syncs() -> int:
        return len(
            re.findall(r"f(?:data)?sync\(\d+<[^>]*registry\.db-wal>\) *= 0", calls.read_text())
        )

    try:
        assert process.stdout.readline().startswith("registry: ")
        with grpc.insecure_channel(json.loads(announce.read_text())["grpc"]) as channel:
            stub = rpc.RegistryStub(channel)
            recording = start(stub)
            for step in range(1, 6):
                before = syncs()
                append(stub, recording, step)
                assert syncs() > before
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
        process.stdout.close()


@pytest.mark.parametrize("default", ["on", "off"])
def test_postgresql_flushes_its_log_before_each_acknowledgement(
    start_registry: StartRegistry, postgres: PostgresCluster, default: str
):
    """Also where the database is configured to acknowledge a commit before it is on disk."""
    url = migrate(postgres.new_database())
    with psycopg.connect(url, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = {default}')

        def flushed() -> int:
            return connection.execute(
                "SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint"
            ).fetchone()[0]

        with grpc.insecure_channel(start_registry(db=url).grpc) as channel:
            stub = rpc.RegistryStub(channel)
            recording = start(stub)
            for step in range(1, 6):
                before = flushed()
                append(stub, recording, step)
                assert flushed() - before >= 4 * TENSORS


def test_postgresql_restarts_under_a_running_server(
    start_registry: StartRegistry, postgres: PostgresCluster
):
    with grpc.insecure_channel(start_registry(db=migrate(postgres.new_database())).grpc) as channel:
        stub = rpc.RegistryStub(channel)
        recording = start(stub)
        append(stub, recording, 1)
        postgres.restart()
        append(stub, recording, 2)
        assert steps(stub, recording) == [1, 2]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path / "small", megabytes=4) as folder:
        yield folder


def probe(registry: RegistryProcess, status: int) -> str:
    """Waits until `/readyz` answers `status`; what it says."""

    def asked() -> httpx.Response:
        return httpx.get(f"{registry.http}/readyz", timeout=20)

    until(lambda: asked().status_code == status, f"/readyz never answers {status}")
    return asked().text


def fill_up(stub: rpc.RegistryStub, recording: str) -> int:
    """Appends until an append is refused; the last acknowledged step."""
    for step in range(1, 10_000):
        try:
            append(stub, recording, step)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNAVAILABLE
            assert "does not answer: " in error.details()
            return step - 1
    pytest.fail("the disk never filled up")


def test_a_full_disk_refuses_and_loses_nothing(start_registry: StartRegistry, small_disk: Path):
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1 << 20))
    registry = start_registry(db=f"sqlite:///{small_disk}/registry.db")
    with grpc.insecure_channel(registry.grpc) as channel:
        stub = rpc.RegistryStub(channel)
        recording = start(stub)
        probe(registry, 200)
        last = fill_up(stub, recording)
        assert last > 10
        told = probe(registry, 503)
        assert "no room for 512 KiB more: No space left" in told and str(small_disk) not in told
        assert steps(stub, recording) == list(range(1, last + 1))
        ballast.unlink()
        probe(registry, 200)
        append(stub, recording, last + 1)
        assert steps(stub, recording) == list(range(1, last + 2))


def test_a_file_that_may_not_grow_refuses_and_loses_nothing(start_registry: StartRegistry):
    registry = start_registry()
    with grpc.insecure_channel(registry.grpc) as channel:
        stub = rpc.RegistryStub(channel)
        recording = start(stub)
        soft, hard = resource.prlimit(registry.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(registry.process.pid, resource.RLIMIT_FSIZE, (1 << 20, hard))
        last = fill_up(stub, recording)
        resource.prlimit(registry.process.pid, resource.RLIMIT_FSIZE, (1 << 12, hard))
        probe(registry, 503)
        resource.prlimit(registry.process.pid, resource.RLIMIT_FSIZE, (soft, hard))
        probe(registry, 200)
        append(stub, recording, last + 1)
        assert steps(stub, recording) == list(range(1, last + 2))


def test_a_full_disk_of_postgresql_refuses_and_loses_nothing(
    start_registry: StartRegistry, postgres: PostgresCluster, tmp_path: Path
):
    admin = postgres.new_database()
    owner = (postgres.folder / "data").stat()
    with (
        small_file_system(postgres.folder / "small", megabytes=32, owner=owner) as folder,
        psycopg.connect(admin, autocommit=True) as connection,
    ):
        place = folder / "space"
        place.mkdir()
        os.chown(place, owner.st_uid, owner.st_gid)
        connection.execute(f"CREATE TABLESPACE small LOCATION '{place}'")
        connection.execute("CREATE DATABASE full_disk TABLESPACE small")
        registry = start_registry(db=migrate(admin.rpartition("/")[0] + "/full_disk"))
        ballast = folder / "ballast"
        with grpc.insecure_channel(registry.grpc) as channel:
            stub = rpc.RegistryStub(channel)
            recording = start(stub)
            probe(registry, 200)
            room = os.statvfs(folder)
            with suppress(OSError), ballast.open("wb") as file:
                while True:
                    file.write(bytes(room.f_frsize))
            last = fill_up(stub, recording)
            assert "No space left" in probe(registry, 503)
            assert steps(stub, recording) == list(range(1, last + 1))
            ballast.unlink()
            probe(registry, 200)
            append(stub, recording, last + 1)
            assert steps(stub, recording) == list(range(1, last + 2))
        registry.process.kill()
        registry.process.wait()
        connection.execute("DROP DATABASE full_disk WITH (FORCE)")
        connection.execute("DROP TABLESPACE small")
