"""Stores to test.

SQL on both databases, a gRPC server in front of each, and `RegistryClient` in front of the server.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from flerm_server.server import Server
from flerm_server.settings import ListenAddress, Settings
from flerm_server.store.interface import Store
from flerm_server.store.sql import schema
from flerm_server.store.sql.database_url import parse_url
from flerm_server.store.sql.engine import open_engine
from flerm_server.store.sql.store import open_store
from tests.conftest import PostgresCluster
from tests.server.client_store import ClientStore
from tests.server.grpc_store import GrpcStore

for name in ("registry", "store"):
    pytest.register_assert_rewrite(f"tests.server.store.{name}_conformance")


@dataclass
class Backend:
    """One database with a server on it."""

    url: str
    local: Store
    remote: Store
    client: Store
    server: Server


def migrate(url: str) -> str:
    """Makes the tables; the URL."""
    engine = open_engine(parse_url(url))
    schema.upgrade(engine)
    engine.dispose()
    return url


def serve(url: str, drain_seconds: float = 2.0) -> Iterator[Backend]:
    """A server in this process, on free ports."""
    server = Server(
        Settings(
            db=url,
            grpc=ListenAddress("127.0.0.1", 0),
            http=ListenAddress("127.0.0.1", 0),
            drain_seconds=drain_seconds,
        )
    )
    server.start()
    local, remote = open_store(url), GrpcStore(server.grpc_address.text)
    client = ClientStore(server.grpc_address.text)
    yield Backend(url, local, remote, client, server)
    client.close()
    remote.close()
    local.close()
    server.stop()


@pytest.fixture(scope="session")
def sqlite_backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    yield from serve(f"sqlite:///{tmp_path_factory.mktemp('store')}/registry.db")


@pytest.fixture(scope="session")
def postgres_backend(postgres: PostgresCluster) -> Iterator[Backend]:
    yield from serve(migrate(postgres.new_database()))


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.getfixturevalue(
        "sqlite_backend" if request.param == "sqlite" else "postgres_backend"
    )


@pytest.fixture(params=["direct", "over gRPC", "by client"])
def store(request: pytest.FixtureRequest, backend: Backend) -> Store:
    return {"direct": backend.local, "over gRPC": backend.remote, "by client": backend.client}[
        request.param
    ]
