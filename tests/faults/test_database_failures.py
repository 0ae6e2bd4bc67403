"""A database that freezes, turns read-only, moves or vanishes: the server says so, acknowledges
nothing that is not kept, and serves again within ten seconds after the end of the failure.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import httpx
import psycopg
import pytest

from flerm_core.records.recording import Measurement
from flerm_proto import recording_messages
from flerm_proto.v1 import registry_pb2 as pb
from flerm_proto.v1 import registry_pb2_grpc as rpc
from tests.conftest import (
    PostgresCluster,
    RegistryProcess,
    StartRegistry,
    free_port,
    throwaway_cluster,
)
from tests.server.conftest import migrate
from tests.server.samples import family, spec

RECOVERED_SECONDS = 10.0
MOST_SECONDS = 10.0  # that one call may take in a failure


class Run:
    """One recording, to which rows are appended one by one."""

    def __init__(self, registry: RegistryProcess) -> None:
        self.registry = registry
        self.channel = grpc.insecure_channel(registry.grpc)
        self.stub = rpc.RegistryStub(self.channel)
        self.recording = spec(family())
        self.step = 0
        self.acknowledged: list[int] = []
        self.start()

    def start(self) -> None:
        message = recording_messages.spec_to_proto(self.recording)
        self.stub.StartRecording(pb.StartRecordingRequest(spec=message), timeout=20)

    def append(self) -> str:
        """Sends the next row: `ok`, or the code of the refusal with what it says."""
        self.step += 1
        row = Measurement(step=self.step, values=[1.0, 2.0, 3.0])
        request = pb.AppendRequest(
            recording_id=self.recording.id,
            measurements=[recording_messages.measurement_to_proto(row)],
        )
        began = time.monotonic()
        try:
            self.stub.Append(request, timeout=30)
        except grpc.RpcError as error:
            assert time.monotonic() - began < MOST_SECONDS
            return f"{error.code().name}: {error.details()}"
        self.acknowledged.append(self.step)
        return "ok"

    def refused(self, word: str) -> None:
        answer = self.append()
        assert answer.startswith("UNAVAILABLE"), answer
        assert word in answer

    def recovers(self) -> None:
        """Waits until rows are taken and the probe says so."""
        end = time.monotonic() + RECOVERED_SECONDS
        while (answer := self.append()) != "ok" or self.probe() != 200:
            assert time.monotonic() < end, answer
            time.sleep(0.1)
        self.is_whole()

    def is_whole(self) -> None:
        request = pb.GetTrajectoryRequest(recording_id=self.recording.id)
        chunks = self.stub.GetTrajectory(request, timeout=20)
        found = [step for chunk in chunks for step in chunk.rows.steps]
        # A refused row may have been stored: its sender would send it again.
        assert set(self.acknowledged) <= set(found)
        assert found == sorted(set(found))

    def probe(self) -> int:
        return httpx.get(f"{self.registry.http}/readyz", timeout=MOST_SECONDS).status_code

    def probe_says(self, status: int) -> None:
        end = time.monotonic() + RECOVERED_SECONDS
        while (found := self.probe()) != status:
            assert time.monotonic() < end, found
            time.sleep(0.1)


@pytest.fixture
def run(start_registry: StartRegistry) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def make(db: str | None = None) -> Run:
        runs.append(Run(start_registry(db=db)))
        return runs[-1]

    yield make
    for each in runs:
        each.channel.close()


def sql(url: str, *statements: str) -> None:
    options = "-c default_transaction_read_only=off"
    with psycopg.connect(url, autocommit=True, options=options) as connection:
        for statement in statements:
            connection.execute(statement)


def test_a_standby_that_is_promoted_is_written_again(
    run: Callable[..., Run], postgres: PostgresCluster
):
    """Sessions that began on a standby stay read-only, so they must not be used again."""
    url = migrate(postgres.new_database())
    name = url.rpartition("/")[2]
    job = run(url)
    assert job.append() == "ok"
    sql(
        url,
        f"ALTER DATABASE {name} SET default_transaction_read_only = on",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    for _ in range(3):
        job.refused("cannot be written now")
    job.probe_says(503)
    job.is_whole()  # it can be read
    sql(url, f"ALTER DATABASE {name} RESET default_transaction_read_only")
    job.recovers()


@pytest.mark.slow
def test_a_frozen_postgresql_is_noticed_and_used_again(
    run: Callable[..., Run], postgres: PostgresCluster
):
    job = run(migrate(postgres.new_database()))
    assert job.append() == "ok"
    with postgres.frozen():
        job.refused("does not answer")
        job.probe_says(503)
        assert httpx.get(f"{job.registry.http}/healthz", timeout=2).status_code == 200
    job.recovers()


@pytest.mark.slow
def test_the_other_host_takes_over_from_a_frozen_one(run: Callable[..., Run]):
    with throwaway_cluster() as first, throwaway_cluster() as second:
        old, new = migrate(first.new_database()), migrate(second.new_database())
        name = old.rpartition("/")[2]
        assert new.rpartition("/")[2] == name
        job = run(
            f"postgresql://postgres@127.0.0.1:{first.port},127.0.0.1:{second.port}/{name}"
            "?target_session_attrs=read-write"
        )
        assert job.append() == "ok"
        with first.frozen():
            end = time.monotonic() + RECOVERED_SECONDS
            while not (answer := job.append()).startswith("NOT_FOUND"):  # nothing was replicated
                assert time.monotonic() < end, answer
            job.start()
            job.step, job.acknowledged = 0, []
            assert job.append() == "ok"
            job.probe_says(200)


def test_a_restored_postgresql_database_is_found(
    run: Callable[..., Run], postgres: PostgresCluster
):
    url = migrate(postgres.new_database())
    name = url.rpartition("/")[2]
    job = run(url)
    assert job.append() == "ok"
    admin = url.rpartition("/")[0] + "/postgres"
    sql(admin, f"DROP DATABASE {name} WITH (FORCE)")
    job.refused("does not exist")
    sql(admin, f"CREATE DATABASE {name}")
    job.refused("finish the restore")
    job.probe_says(503)
    migrate(url)
    job.start()
    job.acknowledged.clear()
    job.recovers()


class Pooler:
    """pgbouncer in transaction pooling in front of a database. Fails without pgbouncer."""

    def __init__(self, url: str, command: list[str]) -> None:
        self.url, self.command = url, command
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stderr=subprocess.DEVNULL)
        end = time.monotonic() + RECOVERED_SECONDS
        while True:
            try:
                psycopg.connect(self.url).close()
                break
            except psycopg.OperationalError:
                assert time.monotonic() < end
                assert self.process.poll() is None

    def end(self, *, kill: bool = False) -> None:
        self.process.kill() if kill else self.process.terminate()
        self.process.wait(10)


@contextmanager
def bouncer(folder: Path, postgres: PostgresCluster, url: str) -> Iterator[Pooler]:
    port, name = free_port(), url.rpartition("/")[2]
    settings = folder / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n{name} = host=127.0.0.1 port={postgres.port} dbname={name} user=postgres\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        "auth_type = any\npool_mode = transaction\ndefault_pool_size = 3\n"
        "server_lifetime = 1\nserver_login_retry = 1\n"
    )
    settings.chmod(0o644)
    for each in (folder, *folder.parents[:2]):
        each.chmod(0o755)
    user = ["--user", "postgres"] if os.getuid() == 0 else []
    pooler = Pooler(
        f"postgresql://postgres@127.0.0.1:{port}/{name}",
        ["/usr/sbin/pgbouncer", "--quiet", *user, str(settings)],
    )
    try:
        yield pooler
    finally:
        pooler.end()


@pytest.mark.parametrize("turns", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_behind_a_transaction_pooler_every_acknowledged_commit_was_durable(
    run: Callable[..., Run], postgres: PostgresCluster, tmp_path: Path, turns: int
):
    """Server connections come and go behind the pooler, without the settings of a session."""
    url = migrate(postgres.new_database())
    name = url.rpartition("/")[2]
    sql(
        url,
        f"ALTER DATABASE {name} SET synchronous_commit = off",
        "CREATE TABLE seen (setting text)",
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$",
        "CREATE TRIGGER note AFTER INSERT ON measurements EXECUTE FUNCTION note()",
    )
    with bouncer(tmp_path, postgres, url) as pooled:
        jobs = [run(pooled.url)]
        jobs += [Run(jobs[0].registry) for _ in range(3)]
        for turn in range(turns):
            for job in jobs:
                assert job.append() == "ok"
            if turn % 20 == 3:
                sql(
                    url,
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()",
                )
                for job in jobs:
                    job.recovers()
        for job in jobs:
            job.is_whole()
        postgres.restart()
        jobs[0].recovers()
        for job in jobs[1:]:
            job.channel.close()
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT DISTINCT setting FROM seen").fetchall()
    assert found == [("on",)]


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_behind_a_transaction_pooler_failures_end_as_without_one(
    run: Callable[..., Run], postgres: PostgresCluster, tmp_path: Path, kills: int
):
    """The database turns read-only, the pooler is killed, and in the long form all freezes."""
    url = migrate(postgres.new_database())
    name = url.rpartition("/")[2]
    end_sessions = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with bouncer(tmp_path, postgres, url) as pooled:
        job = run(pooled.url)
        assert job.append() == "ok"
        read_only = f"ALTER DATABASE {name} SET default_transaction_read_only = on"
        sql(url, read_only, end_sessions)
        job.refused("cannot be written now")
        job.is_whole()
        sql(url, f"ALTER DATABASE {name} RESET default_transaction_read_only")
        job.recovers()
        for _ in range(kills):
            pooled.end(kill=True)
            job.refused("does not answer")
            pooled.start()
            job.recovers()
        if kills > 1:
            with postgres.frozen():
                job.refused("does not answer")
                assert job.probe() == 503
            job.recovers()
            postgres.restart()
            job.recovers()


FILES = ("", "-wal", "-shm")


def rows_on_disk(file: Path) -> int:
    with sqlite3.connect(file) as connection:
        (rows,) = connection.execute("SELECT count(*) FROM measurements").fetchone()
    connection.close()
    return int(rows)


def test_a_deleted_sqlite_file_takes_no_rows(run: Callable[..., Run], tmp_path: Path):
    job = run()
    file = tmp_path / "registry.db"
    assert job.append() == "ok"
    kept = tmp_path / "kept"
    kept.mkdir()
    for suffix in FILES:
        Path(f"{file}{suffix}").rename(kept / f"registry.db{suffix}")
    for _ in range(3):
        job.refused("is not there")
    job.probe_says(503)
    assert not file.exists()  # no empty registry in its place
    for suffix in FILES:
        (kept / f"registry.db{suffix}").rename(f"{file}{suffix}")
    job.recovers()


def test_rows_go_to_the_copy_that_replaced_a_sqlite_file(run: Callable[..., Run], tmp_path: Path):
    job = run()
    file, copy = tmp_path / "registry.db", tmp_path / "copy.db"
    assert job.append() == "ok"
    with sqlite3.connect(file) as source, sqlite3.connect(copy) as destination:
        source.backup(destination)
    source.close()
    destination.close()
    for suffix in FILES:
        Path(f"{file}{suffix}").unlink()
    copy.rename(file)
    job.recovers()
    for _ in range(5):
        assert job.append() == "ok"
    assert rows_on_disk(file) == len(job.acknowledged)


def test_a_copy_beside_the_log_of_a_served_file_is_not_opened(
    run: Callable[..., Run], tmp_path: Path
):
    job = run()
    file, copy = tmp_path / "registry.db", tmp_path / "copy.db"
    assert job.append() == "ok"
    with sqlite3.connect(file) as source, sqlite3.connect(copy) as destination:
        source.backup(destination)
    source.close()
    destination.close()
    before = copy.read_bytes()
    assert job.append() == "ok"
    copy.rename(file)  # its log and shared memory stay
    for _ in range(3):
        job.refused("belongs to another file")
    job.probe_says(503)
    assert file.read_bytes() == before
    for suffix in FILES[1:]:
        Path(f"{file}{suffix}").unlink()
    job.acknowledged = [1]
    job.recovers()


def test_rows_in_a_log_that_was_deleted_are_kept(run: Callable[..., Run], tmp_path: Path):
    job = run()
    file = tmp_path / "registry.db"
    for _ in range(5):
        assert job.append() == "ok"
    Path(f"{file}-wal").unlink()
    job.recovers()
    assert job.registry.stop() == 0
    assert rows_on_disk(file) == len(job.acknowledged) == 6
