"""Several server processes on one PostgreSQL database, behind one address.

Each answers as the others do, and each can be replaced while the others run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from balancer import Balancer
from waiting import until

from flerm_client import RegistryClient
from flerm_proto import recording_messages
from flerm_proto.v1 import registry_pb2 as pb
from flerm_proto.v1 import registry_pb2_grpc as rpc
from flerm_server.auth.sql_tokens import SqlTokenStore
from flerm_server.server import Server
from flerm_server.settings import ListenAddress, Settings
from flerm_server.store.sql.store import open_store
from tests.conftest import PostgresCluster, RegistryProcess, launch_registry
from tests.server.conftest import migrate
from tests.server.samples import NAMES, PARAMETERS, attempt, family, row, spec

SERVICE = pb.DESCRIPTOR.services_by_name["Registry"]
NEXT_VERSION = Path(__file__).parent / "jobs" / "next_version.py"


@dataclass
class Pair:
    """Two processes on one database, and calls that take turns between them."""

    db: str
    servers: tuple[RegistryProcess, RegistryProcess]
    stubs: tuple[rpc.RegistryStub, rpc.RegistryStub]

    def __post_init__(self) -> None:
        self._turn = cycle(self.stubs)
        self.asked: set[str] = set()

    def call(self, method: str, **fields: Any) -> Any:
        """The answer of the next server: never the one that answered the call before."""
        self.asked.add(method)
        kind = SERVICE.methods_by_name[method]
        request = getattr(pb, f"{method}Request")(**fields)
        answer = getattr(next(self._turn), method)(request, timeout=20)
        return list(answer) if kind.server_streaming else answer


@pytest.fixture(scope="module")
def pair(postgres: PostgresCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    db = migrate(postgres.new_database())
    folder = tmp_path_factory.mktemp("pair")
    with ExitStack() as stack:
        servers = tuple(
            launch_registry(db, folder / f"{at}.json", options=("--lease", "3")) for at in range(2)
        )
        stubs = tuple(
            rpc.RegistryStub(stack.enter_context(grpc.insecure_channel(each.grpc)))
            for each in servers
        )
        yield Pair(db, servers, stubs)
        for each in servers:
            assert each.stop() == 0, "".join(each.output)


def test_each_server_answers_what_the_other_wrote(pair: Pair):
    """Every RPC, each answered by another server than the RPC before."""
    name = family()
    assert pair.call("ServerInfo").schema_revision == pair.call("ServerInfo").schema_revision
    pair.call("RegisterFamily", name=name, description="two servers")
    assert pair.call("ListFamilies", prefix=name).families[0].description == "two servers"
    sent = spec(name)
    assert pair.call("StartRecording", spec=recording_messages.spec_to_proto(sent)).created
    assert not pair.call("StartRecording", spec=recording_messages.spec_to_proto(sent)).created
    first, second, third = (
        [recording_messages.measurement_to_proto(row(step))] for step in (1, 2, 3)
    )
    assert pair.call("Append", recording_id=sent.id, measurements=first).committed == 1
    assert pair.call("Append", recording_id=sent.id, measurements=first).duplicates == 1
    assert pair.call("Append", recording_id=sent.id, measurements=second).committed == 1
    assert pair.call("RenewLease", recording_id=sent.id).seconds == 3
    resume = attempt(2, 1)
    again = {
        "spec": recording_messages.spec_to_proto(sent),
        "attempt": recording_messages.attempt_to_proto(resume),
    }
    opened = [pair.call("StartRecording", **again) for _ in range(2)]
    assert [(each.attempt, each.created) for each in opened] == [(2, True), (2, False)]
    pair.call("Append", recording_id=sent.id, attempt=2, measurements=third)
    pair.call("TagRecording", recording_id=sent.id, set={"a": "b"})
    ended = [
        pair.call("FinishRecording", recording_id=sent.id, status="completed", final_loss=0.5)
        for _ in range(2)
    ]
    assert [each.rows for each in ended] == [ended[0].rows] * 2
    found = [pair.call("GetRecording", recording_id=sent.id) for _ in range(2)]
    assert found[0] == found[1] and found[0].spec.tags == {"a": "b"}
    for method, fields in (
        ("ListRecordings", {"family": name}),
        ("GetTrajectory", {"recording_id": sent.id}),
        ("GetTargets", {"family": name, "lr": 1e-3, "names": NAMES}),
        ("GetBest", {"family": name}),
    ):
        assert pair.call(method, **fields) == pair.call(method, **fields), method
    assert pair.call("RenameFamily", name=name, new_name=f"{name}-2").name == f"{name}-2"
    assert pair.call("ListRecordings", family=f"{name}-2").recordings[0].spec.id == sent.id
    assert [pair.call("DeleteRecording", recording_id=sent.id).rows for _ in range(2)] == [3, 0]
    part = {"recording_id": (other := spec(name)).id, "measurements": first}
    part["start"] = {"spec": recording_messages.spec_to_proto(other)}
    stored = [pair.call("ImportRecordings", parts=[part]) for _ in range(2)]
    assert [(each.committed, each.duplicates) for each in stored] == [(1, 0), (1, 1)]
    assert pair.asked == {method.name for method in SERVICE.methods}


def test_rows_sent_to_both_servers_at_the_same_time_are_stored_once(pair: Pair):
    """Eight clients of each server write the same two recordings at the same time."""
    sent = [spec(family()) for _ in range(2)]
    for each in sent:
        pair.call("StartRecording", spec=recording_messages.spec_to_proto(each))
    counts: list[tuple[int, int]] = []
    errors: list[Exception] = []

    def client(stub: rpc.RegistryStub) -> None:
        try:
            for step in range(1, 21):
                for each in sent:
                    request = pb.AppendRequest(
                        recording_id=each.id,
                        measurements=[recording_messages.measurement_to_proto(row(step))],
                    )
                    answer = stub.Append(request, timeout=30)
                    counts.append((answer.committed, answer.duplicates))
        except Exception as error:
            errors.append(error)

    threads = [
        threading.Thread(target=client, args=(pair.stubs[at % 2],), daemon=True) for at in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert {committed for committed, _ in counts} == {1}
    assert (
        sum(1 - duplicates for _, duplicates in counts) == 2 * 20
    )  # one of the clients that sent a row stored it, the others repeated it
    for each in sent:
        chunks = pair.call("GetTrajectory", recording_id=each.id)
        assert [step for chunk in chunks for step in chunk.rows.steps] == list(range(1, 21))


@pytest.mark.slow
def test_a_lease_that_one_server_renewed_counts_on_both(pair: Pair):
    sent = spec(family())
    pair.call("StartRecording", spec=recording_messages.spec_to_proto(sent))
    begun = time.monotonic()
    while time.monotonic() < begun + 4:  # longer than one lease
        assert pair.call("RenewLease", recording_id=sent.id).seconds == 3
        assert {
            stub.GetRecording(pb.GetRecordingRequest(recording_id=sent.id)).status
            for stub in pair.stubs
        } == {"running"}
        time.sleep(0.5)
    until(
        lambda: pair.call("GetRecording", recording_id=sent.id).status == "interrupted",
        "the lease did not end",
    )
    assert pair.call("GetRecording", recording_id=sent.id).status == "interrupted"


def test_events_of_one_server_tell_of_rows_that_the_other_stored(pair: Pair):
    sent = spec(family())
    pair.stubs[0].StartRecording(
        pb.StartRecordingRequest(spec=recording_messages.spec_to_proto(sent)), timeout=20
    )
    with httpx.stream(
        "GET", f"{pair.servers[1].http}/api/v1/recordings/{sent.id}/events", timeout=20
    ) as answer:
        data = (
            json.loads(line.removeprefix("data: "))
            for line in answer.iter_lines()
            if line.startswith("data: ")
        )
        assert next(data)["rows"] == 0
        request = pb.AppendRequest(
            recording_id=sent.id, measurements=[recording_messages.measurement_to_proto(row(7))]
        )
        pair.stubs[0].Append(request, timeout=20)
        assert next(each for each in data if each["rows"])["last_step"] == 7
        pair.stubs[0].FinishRecording(
            pb.FinishRecordingRequest(recording_id=sent.id, status="completed"), timeout=20
        )
        assert [each["status"] for each in data][-1] == "completed"


def test_old_connections_are_closed_so_that_servers_share_the_load(postgres: PostgresCluster):
    db, here = migrate(postgres.new_database()), ListenAddress("127.0.0.1", 0)
    servers = [
        Server(Settings(db=db, grpc=here, http=here, drain_seconds=1, connection_seconds=0.5))
        for _ in range(2)
    ]
    for each in servers:
        each.start()
    balancer = Balancer(*(each.grpc_address.text for each in servers))
    try:
        with RegistryClient(f"grpc://{balancer.address}") as client:
            until(
                lambda: bool(client.info()) and len(balancer.taken) == 2,
                "one client stayed with one server",
            )
    finally:
        balancer.close()
        for each in servers:
            each.stop()


@pytest.mark.slow
def test_a_token_revoked_on_the_console_is_refused_by_both_at_once(
    postgres: PostgresCluster, tmp_path: Path
):
    db = migrate(postgres.new_database())
    console = open_store(db)
    token, secret = SqlTokenStore(console.engine).create("both", "read")
    servers = [launch_registry(db, tmp_path / f"{at}.json") for at in range(2)]
    try:
        for each in servers:
            with RegistryClient(each.address, secret.text) as client:
                assert client.info().schema_revision
        SqlTokenStore(console.engine).revoke(token.id)
        header = {"Authorization": f"Bearer {secret.text}"}
        assert [
            httpx.get(f"{each.http}/api/v1/families", headers=header).status_code
            for each in servers
        ] == [401, 401]
    finally:
        console.close()
        for each in servers:
            assert each.stop() == 0


class Load:
    """A client for each address, which records until it is stopped, and collects all errors."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self.errors: list[Exception] = []
        self.written: dict[str, int] = {}
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._record, args=(address,), daemon=True)
            for address in addresses
        ]
        for thread in self._threads:
            thread.start()

    def _record(self, address: str) -> None:
        try:
            with RegistryClient(f"grpc://{address}") as client:
                recording = client.start_recording(
                    family(), 1e-3, PARAMETERS.names, PARAMETERS.shapes
                )
                step = 0
                while not self._over.is_set():
                    step += 1
                    client.append(recording, [step], np.full((1, len(NAMES)), step, np.float32))
                    self.written[recording] = step
                    if step % 50 == 0:
                        assert client.recording(recording).rows == step
                    time.sleep(0.01)
                client.finish(recording)
        except Exception as error:
            self.errors.append(error)

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def run(*program: str) -> str:
    """Runs a command of one version; its output."""
    ended = subprocess.run(
        [sys.executable, *program],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return ended.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_servers_are_upgraded_one_by_one_under_load(postgres: PostgresCluster, tmp_path: Path):
    """Old servers, an upgrade of the schema, new servers: no client sees an error."""
    db = migrate(postgres.new_database())
    servers = [
        launch_registry(db, tmp_path / f"old-{at}.json", options=("--drain", "5"))
        for at in range(2)
    ]
    # Six of them: gRPC joins a process's channels to one address into one connection.
    balancers = [Balancer(*(each.grpc for each in servers)) for _ in range(6)]
    load = Load([each.address for each in balancers])
    try:
        until(lambda: len(load.written) == 6, "the load did not begin")
        assert "-> 9001" in run(str(NEXT_VERSION), "db", "upgrade", "--db", db)
        for at in range(2):
            new = launch_registry(
                db, tmp_path / f"new-{at}.json", options=("--drain", "5"), script=NEXT_VERSION
            )
            old = servers[at]
            servers[at] = new
            for balancer in balancers:
                balancer.backends = [each.grpc for each in servers]
            before = dict(load.written)
            assert old.stop() == 0, "".join(old.output)
            until(
                lambda before=before: all(load.written[each] > before[each] + 5 for each in before),
                "a client stands still",
            )
    finally:
        load.stop()
        for balancer in balancers:
            balancer.close()
    assert load.errors == []
    store = open_store(db)
    for recording, steps in load.written.items():
        assert store.trajectory(recording).steps.tolist() == list(range(1, steps + 1))
        assert store.recording(recording).status == "completed"
    store.close()
    for each in servers:
        assert each.stop() == 0, "".join(each.output)
