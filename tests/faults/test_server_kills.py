"""The server is killed (SIGKILL) at random moments while clients append, and restarted.

Every acknowledged row is stored, and stored once.
"""

from __future__ import annotations

import contextlib
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from waiting import until

from flerm_client import RegistryClient
from flerm_core.records.measurement_batch import MeasurementBatch
from flerm_core.records.recording import Measurement
from flerm_proto import recording_messages
from flerm_proto.v1 import registry_pb2 as pb
from flerm_proto.v1 import registry_pb2_grpc as rpc
from tests.conftest import PostgresCluster, RegistryProcess, free_port, launch_registry
from tests.faults.test_database_failures import bouncer
from tests.server.conftest import migrate
from tests.server.samples import family, spec

SECONDS = 60
LONG = [pytest.mark.slow, pytest.mark.timeout(900)]
KILLS = [
    ("sqlite", 3),
    ("postgresql", 3),
    pytest.param("sqlite", 50, marks=LONG),
    pytest.param("postgresql", 50, marks=LONG),
    pytest.param("pgbouncer", 20, marks=LONG),
]
# Short, so that a test does not wait until gRPC reconnects.
RECONNECT = [
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
]


class Writer(threading.Thread):
    """A client that appends rows to one recording until it is stopped.

    What was not acknowledged it sends again.
    """

    def __init__(self, address: str, seed: int, *, pipelined: bool) -> None:
        super().__init__(daemon=True)  # a test that failed ends, whatever a writer waits for
        self.address, self.pipelined = address, pipelined
        self.random = np.random.default_rng(seed)
        self.recording = spec(family())
        self.stopping = threading.Event()
        self.sent: list[Measurement] = []
        self.acknowledged = 0
        self.repeated = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            with grpc.insecure_channel(self.address, options=RECONNECT) as channel:
                stub = rpc.RegistryStub(channel)
                start = pb.StartRecordingRequest(
                    spec=recording_messages.spec_to_proto(self.recording)
                )
                while not self.calls(
                    lambda: stub.StartRecording(start, timeout=SECONDS, wait_for_ready=True)
                ):
                    pass
                while not self.stopping.is_set() or self.acknowledged < len(self.sent):
                    self.calls(
                        lambda: self.at_once(stub) if self.pipelined else self.one_by_one(stub)
                    )
        except BaseException as error:
            self.failure = error

    def calls(self, call) -> bool:
        """Whether the call succeeded; False when the server was killed meanwhile."""
        try:
            call()
        except grpc.RpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                raise
            return False
        return True

    def request(self, first: int) -> tuple[pb.AppendRequest, int]:
        """Rows from index `first` on: those sent before, then new ones."""
        count = int(self.random.integers(1, 20))
        while len(self.sent) < first + count:
            values = self.random.random(3, np.float32)
            self.sent.append(
                Measurement(step=len(self.sent) + 1, values=values, loss=float(values[0]))
            )
        rows = self.sent[first : first + count]
        return pb.AppendRequest(
            recording_id=self.recording.id,
            measurements=map(recording_messages.measurement_to_proto, rows),
        ), count

    def one_by_one(self, stub: rpc.RegistryStub) -> None:
        request, count = self.request(self.acknowledged)
        answer = stub.Append(request, timeout=SECONDS, wait_for_ready=True)
        assert answer.committed == count
        self.acknowledged += count
        self.repeated += answer.duplicates

    def at_once(self, stub: rpc.RegistryStub) -> None:
        first, requests, counts = self.acknowledged, [], []
        for _ in range(30):
            request, count = self.request(first)
            requests.append(request)
            counts.append(count)
            first += count
        answers = [
            stub.Append.future(request, timeout=SECONDS, wait_for_ready=True)
            for request in requests
        ]
        try:
            for answer, count in zip(answers, counts, strict=True):
                assert answer.result().committed == count
                self.acknowledged += count
                self.repeated += answer.result().duplicates
        finally:
            for answer in answers:  # a client may have 64 appends in flight
                with contextlib.suppress(grpc.FutureCancelledError):
                    answer.exception()


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a new database: a file, one in PostgreSQL, or that behind pgbouncer."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/registry.db"
        return
    postgres: PostgresCluster = request.getfixturevalue("postgres")
    url = migrate(postgres.new_database())
    if request.param == "postgresql":
        yield url
        return
    with bouncer(tmp_path, postgres, url) as pooler:
        yield pooler.url


def have_rows_acknowledged(writers: list[Writer]) -> None:
    """Waits until each writer has sent something, then or before, or has failed."""
    until(
        lambda: all(writer.acknowledged or writer.failure for writer in writers),
        "a writer has sent nothing",
    )


@pytest.mark.parametrize(("database", "kills"), KILLS, indirect=["database"])
def test_what_was_acknowledged_is_there_once_and_equal(database: str, kills: int, tmp_path: Path):
    moments = random.Random(kills)
    address = f"127.0.0.1:{free_port()}"

    def launch() -> RegistryProcess:
        return launch_registry(database, tmp_path / "announce.json", address)

    server = launch()
    writers = [Writer(address, seed, pipelined=bool(seed % 2)) for seed in range(4)]
    try:
        for writer in writers:
            writer.start()
        for _ in range(kills):
            threading.Event().wait(moments.uniform(0.05, 0.6))
            server.stop(signal.SIGKILL)
            server = launch()
        have_rows_acknowledged(writers)
    finally:
        for writer in writers:
            writer.stopping.set()
        for writer in writers:
            writer.join(SECONDS)
        alive = [writer.is_alive() for writer in writers]
    try:
        assert [writer.failure for writer in writers] == [None] * len(writers)
        assert not any(alive)
        with RegistryClient(f"grpc://{address}") as client:
            for writer in writers:
                found = client.trajectory(writer.recording.id)
                sent = MeasurementBatch.of(writer.sent)
                assert writer.acknowledged == len(sent) > 0
                assert found.steps.tolist() == sent.steps
                assert found.values.tobytes() == b"".join(sent.fslr)
                assert found.losses.tolist() == sent.losses
    finally:
        assert server.stop() == 0


RESTARTS = [2, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]


@pytest.mark.parametrize("restarts", RESTARTS)
def test_what_was_acknowledged_outlives_kills_of_the_database(
    restarts: int, tmp_path: Path, postgres: PostgresCluster
):
    """PostgreSQL ends at once, without writing out what it has in memory; the server stays."""
    moments = random.Random(restarts)
    server = launch_registry(migrate(postgres.new_database()), tmp_path / "announce.json")
    writers = [Writer(server.grpc, seed, pipelined=bool(seed % 2)) for seed in range(4)]
    try:
        for writer in writers:
            writer.start()
        for _ in range(restarts):
            threading.Event().wait(moments.uniform(0.3, 1.0))
            postgres.restart()
        have_rows_acknowledged(writers)
    finally:
        for writer in writers:
            writer.stopping.set()
        for writer in writers:
            writer.join(SECONDS)
    try:
        assert [writer.failure for writer in writers] == [None] * len(writers)
        with RegistryClient(server.address) as client:
            for writer in writers:
                found = client.trajectory(writer.recording.id)
                sent = MeasurementBatch.of(writer.sent)
                assert writer.acknowledged == len(sent) > 0
                assert found.steps.tolist() == sent.steps
                assert found.values.tobytes() == b"".join(sent.fslr)
    finally:
        assert server.stop() == 0
