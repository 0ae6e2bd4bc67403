"""HTTP waits while gRPC calls are being answered, and never for long."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

import grpc
import httpx
import pytest
from held_calls import hold_appends, hold_trajectories

from flerm_proto import recording_messages
from flerm_proto.v1 import registry_pb2 as pb
from flerm_proto.v1 import registry_pb2_grpc as rpc
from flerm_server import precedence
from flerm_server.precedence import Precedence
from tests.server.conftest import serve
from tests.server.samples import family, row, spec

LONG = 60.0
MOMENT = 0.1  # in which nothing may happen


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """Sets for how long a call counts, and for how long HTTP waits."""

    def change(call: float, turn: float) -> None:
        monkeypatch.setattr(precedence, "CALL_SECONDS", call)
        monkeypatch.setattr(precedence, "TURN_SECONDS", turn)

    return change


def waits(it: Future[object]) -> bool:
    return bool(wait([it], MOMENT).not_done)


def test_http_waits_until_the_last_call_has_ended(pool, limits):
    limits(LONG, LONG)
    calls = Precedence()
    calls.give_way()
    first, second = calls.arrive(), calls.arrive()
    http = pool.submit(calls.give_way)
    second.close()
    second.close()
    assert waits(http)
    first.close()
    http.result(LONG)


def test_http_has_its_turn_though_calls_never_end(limits):
    limits(LONG, 0.01)
    calls = Precedence()
    for _ in range(3):
        calls.arrive()
        calls.give_way()


def test_a_call_counts_for_a_while_only(limits):
    """Such as one whose message does not come."""
    limits(0.01, LONG)
    calls = Precedence()
    calls.arrive()
    calls.give_way()


@pytest.fixture
def recorded(
    tmp_path, monkeypatch
) -> Iterator[tuple[rpc.RegistryStub, str, Callable[[], int], threading.Event, threading.Event]]:
    """A registry with one recording, whose second append and whose trajectory are held."""
    appends = hold_appends(monkeypatch, lambda request: request.measurements[0].step == 2)
    rows = hold_trajectories(monkeypatch)
    backends = serve(f"sqlite:///{tmp_path}/registry.db")
    backend = next(backends)
    address = f"http://{backend.server.http_address.text}/healthz"
    sent = spec(family())
    backend.local.start(sent)
    with grpc.insecure_channel(backend.server.grpc_address.text) as channel, httpx.Client() as web:
        stub = rpc.RegistryStub(channel)
        stub.Append(append(sent.id, 1), timeout=LONG)
        yield stub, sent.id, lambda: web.get(address, timeout=LONG).status_code, appends, rows
        appends.set()
        rows.set()
    next(backends, None)


def append(recording_id: str, step: int) -> pb.AppendRequest:
    measurements = [recording_messages.measurement_to_proto(row(step))]
    return pb.AppendRequest(recording_id=recording_id, measurements=measurements)


def test_a_page_waits_for_an_append_and_not_for_a_stream(recorded, pool, limits):
    stub, identity, page, appends, _ = recorded
    limits(LONG, LONG)
    stream = stub.GetTrajectory(pb.GetTrajectoryRequest(recording_id=identity), timeout=LONG)
    assert next(stream).header.rows == 1
    assert page() == 200
    answer = stub.Append.future(append(identity, 2), timeout=LONG)
    while not stub_has(stub, identity, 2):
        pass
    asked = pool.submit(page)
    assert waits(asked)
    appends.set()
    assert (answer.result().committed, asked.result(LONG)) == (1, 200)


def stub_has(stub: rpc.RegistryStub, identity: str, rows: int) -> bool:
    found = stub.GetRecording(pb.GetRecordingRequest(recording_id=identity), timeout=LONG)
    return bool(found.rows == rows)


def test_pages_are_answered_while_an_append_waits_for_long(recorded):
    stub, identity, page, appends, _ = recorded
    answer = stub.Append.future(append(identity, 2), timeout=LONG)
    assert [page() for _ in range(20)] == [200] * 20
    appends.set()
    assert answer.result().committed == 1


def test_the_refusal_of_a_call_ends_its_precedence(recorded, limits):
    stub, _, page, _, _ = recorded
    limits(LONG, LONG)
    with pytest.raises(grpc.RpcError):
        stub.Append(append("unknown", 1), timeout=LONG)
    assert page() == 200
