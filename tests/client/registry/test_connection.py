"""A gRPC connection: its retries, its deadlines, and the sentences of its errors."""

from __future__ import annotations

import time

import pytest
from gate import Gate

from flerm_client.registry.address import address_of
from flerm_client.registry.connection import Connection, backoff
from flerm_core.errors import InvalidInput, LimitExceeded, Unauthenticated, Unreachable
from flerm_proto.v1 import registry_pb2 as pb

NOBODY = address_of("grpc://127.0.0.1:1")


@pytest.fixture
def gate(registry):
    """The registry behind a front that can refuse."""
    gate = Gate(registry.grpc)
    yield gate
    gate.close()


def info(connection: Connection):
    return connection.unary("ServerInfo", pb.ServerInfoRequest())


def test_the_pause_after_a_failure_doubles_up_to_a_limit_and_is_jittered():
    for failures, longest in ((0, 0.2), (1, 0.4), (3, 1.6), (20, 10.0)):
        pauses = [backoff(failures) for _ in range(50)]
        assert longest / 2 <= min(pauses) < max(pauses) <= longest


def test_without_patience_an_unreachable_registry_is_reported_at_once():
    begin = time.monotonic()
    with pytest.raises(Unreachable, match=r"^grpc://127\.0\.0\.1:1 cannot be reached: "):
        info(Connection(NOBODY, lambda: ""))
    assert time.monotonic() - begin < 10.0


def test_a_deadline_ends_all_tries():
    begin = time.monotonic()
    with pytest.raises(Unreachable):
        info(Connection(NOBODY, lambda: "", patience=60.0, deadline=time.monotonic() + 1.0))
    assert time.monotonic() - begin < 30.0, "it would have patience for 60 s"


def test_every_try_asks_for_the_token_anew(gate):
    gate.behave(token="new")
    tokens = iter(["old", "new"])
    connection = Connection(address_of(gate.address), lambda: next(tokens))
    with pytest.raises(Unauthenticated):
        info(connection)
    assert "v1" in info(connection).api_versions
    connection.close()


def test_a_refusal_is_not_tried_again(gate):
    gate.behave(code="RESOURCE_EXHAUSTED")
    begin = time.monotonic()
    connection = Connection(address_of(gate.address), lambda: "", patience=30.0)
    with pytest.raises(LimitExceeded):
        info(connection)
    assert time.monotonic() - begin < 15.0, "it would have patience for 30 s"
    connection.close()


def test_a_token_that_no_header_can_hold_is_refused():
    with pytest.raises(InvalidInput, match="only printable ASCII"):
        info(Connection(NOBODY, lambda: "naïve"))


def test_a_call_made_ahead_is_made_again_where_it_fails(gate):
    connection = Connection(address_of(gate.address), lambda: "", patience=30.0)
    gate.behave(code="UNAVAILABLE")
    answer = connection.ahead("ServerInfo", pb.ServerInfoRequest())
    gate.behave()
    assert "v1" in answer().api_versions
    gate.behave(code="RESOURCE_EXHAUSTED")
    with pytest.raises(LimitExceeded):
        connection.ahead("ServerInfo", pb.ServerInfoRequest())()
    connection.close()
