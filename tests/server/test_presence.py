"""Work stops when its caller is gone: its statement is cancelled, and its thread is free."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import grpc
import httpx
import psycopg
import pytest

from flerm_proto.v1 import registry_pb2 as pb
from flerm_proto.v1 import registry_pb2_grpc as rpc
from flerm_server.presence import CallerGone, Presence, work_for
from flerm_server.shared_limit import SharedLimit
from flerm_server.store.sql import listings
from flerm_server.store.sql.engine import transaction
from tests.server.conftest import Backend
from tests.support.waiting import until

FOREVER = (
    "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n > 0) "
    "SELECT count(*) FROM numbers"
)
SECONDS = 30.0


class LongStatement:
    """In place of the listing of recordings: a statement that would never end."""

    def __init__(self) -> None:
        self.began, self.ended = threading.Event(), threading.Event()

    def __call__(self, connection: object, *_: object) -> None:
        self.began.set()
        try:
            connection.exec_driver_sql(FOREVER)  # type: ignore[attr-defined]
        finally:
            self.ended.set()


@pytest.fixture
def long_statement(monkeypatch: pytest.MonkeyPatch) -> LongStatement:
    statement = LongStatement()
    monkeypatch.setattr(listings, "list_recordings", statement)
    return statement


def grpc_caller(backend: Backend) -> Callable[[], object]:
    """Asks; what is given leaves."""
    channel = grpc.insecure_channel(backend.server.grpc_address.text)
    call = rpc.RegistryStub(channel).ListRecordings.future(pb.ListRecordingsRequest())
    return lambda: (call.cancel(), channel.close())


def http_caller(backend: Backend) -> Callable[[], object]:
    """Asks; what is given leaves."""
    address = backend.server.http_address
    caller = socket.create_connection((address.host, address.port))
    caller.sendall(b"GET /api/v1/recordings HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return caller.close


@pytest.mark.parametrize("ask", [grpc_caller, http_caller])
def test_a_statement_ends_when_its_caller_has_left(
    ask: Callable[[Backend], Callable[[], object]],
    backend: Backend,
    long_statement: LongStatement,
    monkeypatch: pytest.MonkeyPatch,
):
    # Without the caller's leaving the statement would run for longer than this test waits.
    monkeypatch.setattr("flerm_server.store.sql.postgres_connections._SETTINGS", ("SELECT 1",))
    monkeypatch.setattr("flerm_server.store.sql.postgres_connections.ANSWER_SECONDS", 60.0)
    leave = ask(backend)
    assert long_statement.began.wait(SECONDS)
    protocol = "grpc" if ask is grpc_caller else "http"
    leave()
    assert long_statement.ended.wait(SECONDS)
    in_flight = f'flerm_calls_in_flight{{protocol="{protocol}"}} '
    # The request for the metrics is one itself.
    idle = in_flight + ("0.0" if protocol == "grpc" else "1.0")
    metrics = f"http://{backend.server.http_address.text}/metrics"
    until(lambda: idle in httpx.get(metrics).text, "the call holds its place")
    assert f'code="{"CANCELLED" if protocol == "grpc" else "499"}"' in httpx.get(metrics).text
    if backend.url.startswith("postgresql"):
        with psycopg.connect(backend.url, autocommit=True) as connection:
            running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'WITH RECURSIVE%'"
            until(lambda: connection.execute(running).fetchone() == (0,), "it runs on")
    monkeypatch.undo()
    backend.remote.families()  # the connections that are left work


def test_what_begins_after_its_caller_has_left_does_nothing(backend: Backend):
    presence = Presence()
    presence.end()
    done: list[str] = []

    def work() -> None:
        work_for(presence)
        with pytest.raises(CallerGone), transaction(backend.local.engine):  # type: ignore[attr-defined]
            done.append("read")
        # Whether a transaction that writes was committed must be known.
        with transaction(backend.local.engine, writes=True):  # type: ignore[attr-defined]
            done.append("wrote")

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert done == ["wrote"]


def test_who_has_left_waits_for_no_share():
    limit = SharedLimit("computations", 1, "computations are going on")
    limit.take("first")
    presence, ended = Presence(), threading.Event()

    def wait() -> None:
        work_for(presence)
        with pytest.raises(CallerGone):
            limit.take("second", wait=600)
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    presence.end()
    assert ended.wait(SECONDS)
    limit.give_back("first")
    limit.take("third")
