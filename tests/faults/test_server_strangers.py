"""Who has no token takes nothing from those who have one, and one token takes only its share."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from waiting import until

from flerm_core.errors import LimitExceeded, Unauthenticated
from flerm_proto import recording_messages
from flerm_proto.v1 import registry_pb2 as pb
from flerm_proto.v1 import registry_pb2_grpc as rpc
from flerm_server.auth.principal import Principal
from flerm_server.auth.sql_tokens import SqlTokenStore
from flerm_server.http import middleware, request_timeout
from flerm_server.http.api import events
from flerm_server.rpc import admission
from flerm_server.rpc.message_entries import count_entries
from flerm_server.server import Server
from flerm_server.settings import ListenAddress, Settings
from flerm_server.shared_limit import SharedLimit
from flerm_server.store.interface import Page
from flerm_server.store.sql.store import open_store
from tests.conftest import StartRegistry
from tests.server.samples import spec

HERE = ListenAddress("127.0.0.1", 0)
MIB = 1 << 20
METHOD = "/flerm.registry.v1.Registry/"
MADE_UP = f"Bearer flerm_{'0' * 12}_{'A' * 43}"
EMPTY_ROWS = b"\x1a\x00" * (2 * MIB)  # two million empty measurements: 4 MiB


@contextmanager
def locked(folder: Path) -> Iterator[tuple[Server, str]]:
    """A registry with tokens, in this process, and a token of scope write."""
    url = f"sqlite:///{folder}/registry.db"
    store = open_store(url)
    _, token = SqlTokenStore(store.engine).create("jobs", "write")
    store.close()
    server = Server(Settings(db=url, grpc=HERE, http=HERE, drain_seconds=1))
    server.start()
    try:
        yield server, token.text
    finally:
        server.stop()


@pytest.fixture(scope="module")
def locked_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    with locked(tmp_path_factory.mktemp("locked")) as server_and_token:
        yield server_and_token


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def files_of(pid: int) -> int:
    """How many descriptors the process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


@contextmanager
def half_open(
    channel: grpc.Channel, method: str, metadata: list[tuple[str, str]] | None = None, *, count: int
) -> Iterator[list]:
    """Calls that never send their message."""
    hold = threading.Event()

    def nothing() -> Iterator[bytes]:
        hold.wait()
        yield from ()

    call = channel.stream_unary(
        method, request_serializer=lambda each: each, response_deserializer=lambda each: each
    )
    calls = [call.future(nothing(), metadata=metadata) for _ in range(count)]
    try:
        yield calls
    finally:
        for each in calls:
            each.cancel()
        hold.set()


def code(call: grpc.Future) -> grpc.StatusCode:
    return call.exception(timeout=20).code()


@pytest.mark.parametrize(
    "authorization", ["", "Basic eDp5", "Bearer flerm_1234", "Bearer ", MADE_UP]
)
def test_half_open_calls_without_a_token_are_answered_at_once_and_hold_up_nobody(
    locked_server: tuple[Server, str], monkeypatch: pytest.MonkeyPatch, authorization: str
):
    server, token = locked_server
    refused_on: set[str] = set()
    authenticate = server._admission.authenticate

    def note(method: str, given: str) -> Principal | None:
        try:
            return authenticate(method, given)
        except Unauthenticated:
            refused_on.add(threading.current_thread().name)
            raise

    monkeypatch.setattr(server._admission, "authenticate", note)
    metadata = [("authorization", authorization)] if authorization else None
    with (
        grpc.insecure_channel(server.grpc_address.text) as channel,
        half_open(channel, f"{METHOD}Append", metadata, count=75) as calls,
    ):
        for _ in range(5):
            rpc.RegistryStub(channel).ServerInfo(
                pb.ServerInfoRequest(), timeout=5, metadata=bearer(token)
            )
        assert {code(call) for call in calls} == {grpc.StatusCode.UNAUTHENTICATED}
    assert len(refused_on) <= admission.EXAMINING_THREADS
    assert all(name.startswith("grpc-examining") for name in refused_on)


def test_what_one_token_may_not_have_takes_no_thread_from_the_others(
    locked_server: tuple[Server, str], monkeypatch: pytest.MonkeyPatch
):
    """Two hundred threads that refuse calls would hold up every other call until they are done."""
    server, token = locked_server
    calls, token_id = SharedLimit("calls", 8, "calls are open"), token.split("_")[1]
    monkeypatch.setattr(server._admission, "_calls", calls)
    method = f"{METHOD}GetRecording"
    before = threading.enumerate()
    with grpc.insecure_channel(server.grpc_address.text) as channel, ExitStack() as held:
        few = held.enter_context(half_open(channel, method, bearer(token), count=6))
        until(lambda: calls.is_crowded(token_id, 5.5 / 6), "held")
        more = held.enter_context(half_open(channel, method, bearer(token), count=60))
        assert {code(call) for call in more} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert "calls: 6 calls are open by one caller" in more[0].exception().details()
        few[0].cancel()  # there is room for one more at once, and not only after a while
        until(lambda: not calls.is_crowded(token_id, 5.5 / 6), "given back")
        asked = rpc.RegistryStub(channel).ServerInfo.future(
            pb.ServerInfoRequest(), timeout=20, metadata=bearer(token)
        )
        assert asked.exception() is None
    new = [each.name for each in threading.enumerate() if each not in before]
    assert sum(name.startswith("grpc_") for name in new) <= 7


def test_half_open_probes_keep_the_health_from_nobody(tmp_path: Path):
    with (
        locked(tmp_path) as (server, _),
        grpc.insecure_channel(server.grpc_address.text) as channel,
        half_open(channel, "/grpc.health.v1.Health/Check", count=100) as calls,
    ):
        until(lambda: sum(each.done() for each in calls) >= 100 - admission.OPEN_WAITING, "held")
        for _ in range(5):
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=5
            )
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_call_with_a_token_has_a_time_to_send_its_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(admission, "MESSAGE_SECONDS", 0.5)
    with (
        locked(tmp_path) as (server, token),
        grpc.insecure_channel(server.grpc_address.text) as channel,
        half_open(channel, f"{METHOD}Append", bearer(token), count=40) as calls,
    ):
        assert {code(call) for call in calls} <= {
            grpc.StatusCode.CANCELLED,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        }


def test_a_message_is_not_parsed_before_its_token_is_known_nor_when_it_would_not_fit(
    start_registry: StartRegistry, tmp_path: Path
):
    url = f"sqlite:///{tmp_path}/registry.db"
    store = open_store(url)
    _, token = SqlTokenStore(store.engine).create("jobs", "write")
    store.close()
    registry = start_registry(url)
    pid = registry.process.pid
    with grpc.insecure_channel(registry.grpc) as channel:
        append = channel.unary_unary(
            f"{METHOD}Append",
            request_serializer=lambda each: each,
            response_deserializer=lambda each: each,
        )
        assert code(append.future(b"")) == grpc.StatusCode.UNAUTHENTICATED
        before = resident(pid)
        for metadata, expected in (
            (None, grpc.StatusCode.UNAUTHENTICATED),
            (bearer(token.text), grpc.StatusCode.RESOURCE_EXHAUSTED),
        ):
            calls = [append.future(EMPTY_ROWS, metadata=metadata, timeout=60) for _ in range(4)]
            assert {code(call) for call in calls} == {expected}
        assert calls[0].details().startswith("max_message_entries: a message of more than 250000")
        assert resident(pid) - before < 64 * MIB  # one of them, parsed, takes more


def test_entries_are_counted_as_deep_as_they_stand():
    request = pb.AppendRequest(recording_id="r")
    for step in range(3):
        row = request.measurements.add(step=step + 1, fslr=b"1234")
        row.scalars["loss"] = 1.0
    # The id; three rows, each with bytes, a map entry and the entry's key.
    data = request.SerializeToString()
    assert count_entries(data, request.DESCRIPTOR, 100) == 1 + 3 * (1 + 1 + 1 + 1)
    assert count_entries(data, request.DESCRIPTOR, 5) == 6
    assert count_entries(data[:-1] + b"\xff", request.DESCRIPTOR, 100) <= 13


def test_one_caller_gets_a_share_and_the_others_the_rest():
    limit = SharedLimit("calls", 8, "calls are in flight", share=0.75)
    limit.take("mine", 6)
    with pytest.raises(LimitExceeded, match="calls: 6 calls are in flight by one caller, of the 6"):
        limit.take("mine")
    limit.take("other", 2)
    with pytest.raises(LimitExceeded, match="calls: 8 calls are in flight at this server"):
        limit.take("third")
    threading.Timer(0.2, limit.give_back, ("mine", 6)).start()
    limit.take("third", wait=10)


def silent_reader(server: Server, path: str, token: str = "") -> socket.socket:
    """A client that asks and does not read."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((server.http_address.host, server.http_address.port))
    lines = [f"GET {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {token}", "", ""]
    client.sendall("\r\n".join(lines).encode())
    return client


def test_silent_readers_cost_little_and_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(request_timeout, "READ_SECONDS", 2.0)
    with locked(tmp_path) as (server, _), ExitStack() as readers:
        http = f"http://{server.http_address.text}"
        whole = httpx.get(f"{http}/static/plotly.min.js", timeout=20).content
        assert len(whole) > 2 * MIB
        before, open_files = resident(os.getpid()), files_of(os.getpid())
        held = [silent_reader(server, "/static/plotly.min.js") for _ in range(60)]
        for each in held:
            readers.callback(each.close)
        time.sleep(1)
        assert resident(os.getpid()) - before < 32 * MIB  # 60 copies are more than 200 MiB
        assert httpx.get(f"{http}/healthz", timeout=5).status_code == 200

        def dropped() -> bool:
            taken = 0
            held[0].settimeout(5)
            try:
                while data := held[0].recv(65536):
                    taken += len(data)
            except ConnectionResetError:
                pass
            return taken < len(whole)

        until(lambda: files_of(os.getpid()) <= open_files + len(held), "the server drops nobody")
        assert dropped()
        assert httpx.get(f"{http}/static/plotly.min.js", timeout=20).content == whole


def test_connections_without_a_request_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(request_timeout, "MAX_WAITING", 20)
    with locked(tmp_path) as (server, _), ExitStack() as held:
        address = (server.http_address.host, server.http_address.port)
        first, *_ = [
            held.enter_context(socket.create_connection(address, timeout=10)) for _ in range(40)
        ]
        assert first.recv(1) == b""
        answer = httpx.get(f"http://{server.http_address.text}/healthz", timeout=5)
        assert answer.status_code == 200


def test_the_login_reads_no_long_body(tmp_path: Path):
    with locked(tmp_path) as (server, _):
        answer = httpx.post(f"http://{server.http_address.text}/login", content=bytes(1 << 17))
        assert answer.status_code == 413
        assert "at most 65536 are allowed" in answer.json()["detail"]


def test_probes_answer_while_requests_hold_all_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A token that asks for more than its share leaves threads, and probes need none of them."""
    monkeypatch.setattr(middleware, "WAITING_PER_TOKEN", 30)
    asked = middleware.REQUESTS_PER_TOKEN + 30 + 10
    with locked(tmp_path) as (server, token):
        released = threading.Event()

        def held(**_: object) -> Page:
            released.wait(20)
            return Page(())

        monkeypatch.setattr(server._store, "families", held)
        http = f"http://{server.http_address.text}"
        statuses: list[int] = []
        client = httpx.Client(limits=httpx.Limits(max_connections=100))

        def ask() -> None:
            answer = client.get(f"{http}/api/v1/families", headers=dict(bearer(token)), timeout=30)
            statuses.append(answer.status_code)

        threads = [threading.Thread(target=ask, daemon=True) for _ in range(asked)]
        for thread in threads:
            thread.start()
        try:
            until(lambda: statuses == [429] * 10, "no refusal")
            for path in ("/healthz", "/readyz"):
                assert httpx.get(f"{http}{path}", timeout=5).status_code == 200
        finally:
            released.set()
            for thread in threads:
                thread.join()


def test_one_token_follows_no_more_recordings_than_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(events, "MAX_STREAMS", 4)
    with (
        locked(tmp_path) as (server, token),
        grpc.insecure_channel(server.grpc_address.text) as channel,
        ExitStack() as held,
    ):
        sent = spec("live")
        rpc.RegistryStub(channel).StartRecording(
            pb.StartRecordingRequest(spec=recording_messages.spec_to_proto(sent)),
            timeout=10,
            metadata=bearer(token),
        )
        path = f"/api/v1/recordings/{sent.id}/events"
        readers = [silent_reader(server, path, token) for _ in range(2)]
        for each in readers:
            held.callback(each.close)
            assert each.recv(12) == b"HTTP/1.1 200"
        answer = httpx.get(
            f"http://{server.http_address.text}{path}", headers=dict(bearer(token)), timeout=5
        )
        assert answer.status_code == 429
        assert answer.json()["detail"].startswith(
            "event_streams: 2 pages follow recordings by one caller, of the 2 allowed"
        )
