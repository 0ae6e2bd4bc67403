"""The store in SQL, directly and through a server, on SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_backend import StoreBackend

from flerm_client.registry.address import address_of, token_of
from flerm_client.registry.backend import RegistryBackend
from flerm_client.registry.connection import Connection
from flerm_client.registry.folder_backend import FolderBackend
from flerm_client.registry.grpc_backend import GrpcBackend
from flerm_core.errors import NotFound
from flerm_core.records.queries import RecordingFilter
from flerm_server.store.group_commit import GroupCommit
from flerm_server.store.interface import Appended, Started
from flerm_server.store.sql.store import open_store
from tests.server.conftest import Backend
from tests.server.samples import batch, family, row, rows, spec
from tests.server.store.clock_conformance import ClockConformance
from tests.server.store.import_conformance import ImportConformance
from tests.server.store.registry_conformance import RegistryConformance
from tests.server.store.store_conformance import StoreConformance, append


class TestStore(StoreConformance, ClockConformance, ImportConformance):
    """Directly, over gRPC and by `RegistryClient`: see the fixture `store`."""


class TestRegistries(RegistryConformance):
    """The store itself, a server in front of it, and a folder of spool files."""

    @pytest.fixture(params=["store on SQLite", "store on PostgreSQL", "gRPC", "folder"])
    def registry(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RegistryBackend]:
        database = "postgres" if request.param == "store on PostgreSQL" else "sqlite"
        if request.param == "folder":
            opened = FolderBackend(tmp_path)
        elif request.param == "gRPC":
            address = request.getfixturevalue("sqlite_backend").server.grpc_address.text
            opened = GrpcBackend(Connection(address_of(f"grpc://{address}"), token_of(None)))
        else:
            opened = StoreBackend(request.getfixturevalue(f"{database}_backend").local)
        yield opened
        opened.close()


def test_a_running_recording_without_lease_reads_as_interrupted(backend: Backend):
    lapsing = open_store(backend.url, lease_seconds=-1)
    sent = spec(family())
    lapsing.start(sent)
    running, interrupted = (
        RecordingFilter(family=sent.family, status=status) for status in ("running", "interrupted")
    )
    for store in (backend.local, backend.remote):
        assert store.recording(sent.id).status == "interrupted"
        assert [each.spec.id for each in store.recordings(interrupted).items] == [sent.id]
        assert not store.recordings(running).items
    assert backend.remote.renew(sent.id) == 120.0
    assert backend.local.recording(sent.id).status == "running"
    lapsing.renew(sent.id)
    append(backend.remote, sent.id, *rows(1))
    assert [each.spec.id for each in backend.remote.recordings(running).items] == [sent.id]
    lapsing.close()


def test_the_error_for_an_unknown_family_suggests_similar_names(backend: Backend):
    name = family()
    backend.local.register_family(name)
    with pytest.raises(NotFound, match=name):
        backend.local.family(name[:-1])


def test_many_threads_append_at_once_and_every_row_is_there_once(backend: Backend):
    """16 threads append through one group commit; two of them send each row."""
    recordings = [spec(family()) for _ in range(2)]
    for each in recordings:
        backend.local.start(each)
    group_commit = GroupCommit(backend.local)
    answers: list[Appended] = []
    errors: list[Exception] = []

    def client(number: int) -> None:
        try:
            sent = recordings[number % 2]
            answers.extend(
                group_commit.append(batch(sent.id, row(1000 * (number // 4) + step)))
                for step in range(1, 41)
            )
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sum(each.committed - each.duplicates for each in answers) == 2 * 4 * 40
    for each in recordings:
        assert backend.local.recording(each.id).rows == 4 * 40
        assert len(backend.local.select(each.id).steps) == 4 * 40


def test_two_servers_on_one_database_do_not_lose_counts(backend: Backend):
    """The gRPC server and this process start one recording and append to it at the same time."""
    sent = spec(family())
    stores = (backend.local, backend.remote)
    starts: list[Started] = []
    errors: list[Exception] = []

    def writer(number: int) -> None:
        try:
            starts.append(stores[number].start(sent))
            for step in range(1, 31):
                append(stores[number], sent.id, row(100 * step + number))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=writer, args=(number,), daemon=True) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(each.created for each in starts) == [False, True]
    found = backend.local.recording(sent.id)
    assert (found.rows, found.first_step, found.last_step) == (60, 100, 3001)
