"""Targets before training: from the registry, in time, else from the cache, else one sentence."""

from __future__ import annotations

import socket
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from spooled import NAMES, SHAPES, spec_of, write_run

from flerm_client.cli import main
from flerm_client.registry import query_process
from flerm_client.registry.query_process import fetch_best, fetch_targets
from flerm_core.errors import FlermError, InvalidInput, NotFound, Unreachable
from flerm_core.records.queries import TargetQuery
from flerm_proto.v1 import registry_pb2 as pb
from flerm_proto.v1 import registry_pb2_grpc as rpc


@pytest.fixture(autouse=True)
def spool(monkeypatch, tmp_path):
    """A spool of the test's own: the cache of answers is in it."""
    monkeypatch.setenv("FLERM_SPOOL", str(tmp_path / "spool"))
    return tmp_path / "spool"


def recorded(address: str, tmp_path) -> str:
    """A family with one completed recording at lr 0.01 in the registry."""
    family = f"fetch/{uuid.uuid4().hex[:12]}"
    write_run(tmp_path / "sent", spec_of(family), [1, 101])
    assert main(["sync", "--spool", str(tmp_path / "sent"), "--registry", address]) == 0
    return family


def query(family: str, lr: float = 1e-2) -> TargetQuery:
    return TargetQuery(family=family, lr=lr, names=NAMES, shapes=SHAPES)


def test_targets_and_the_best_rate_come_from_the_registry_without_grpc_in_this_process(
    registry, tmp_path
):
    family = recorded(registry.address, tmp_path)
    targets = fetch_targets(registry.address, query(family), timeout=20)
    assert (targets["0.weight"], targets["0.bias"], targets.seeds) == (1.0, 2.0, 1)
    assert targets.at(step=101)["0.weight"] == 101.0
    assert fetch_best(registry.address, family, timeout=20).lr == 1e-2
    assert "flerm_client.registry.query_process" in sys.modules


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"family": "fetch/unknown"}, "fetch/unknown"),
        ({"lr": 0.5}, "0.5"),
        ({"names": (*NAMES, "head.weight"), "shapes": ()}, "head.weight"),
    ],
)
def test_what_the_registry_does_not_know_is_named_at_once(registry, tmp_path, change, says):
    family = recorded(registry.address, tmp_path)
    asked = {"family": family, "lr": 1e-2, "names": NAMES, "shapes": SHAPES, **change}
    begin = time.monotonic()
    with pytest.raises((NotFound, InvalidInput), match=says) as caught:
        fetch_targets(registry.address, TargetQuery(**asked), timeout=60)
    assert time.monotonic() - begin < 30, "it would ask for 60 s"
    assert "\n" not in str(caught.value)


def test_a_registry_that_is_down_is_given_up_in_time():
    begin = time.monotonic()
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1 "):
        fetch_targets("grpc://127.0.0.1:1", query("mlp"), timeout=1.0)
    assert time.monotonic() - begin < 20


def test_a_registry_that_accepts_and_never_answers_is_given_up_in_time():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"grpc://127.0.0.1:{silent.getsockname()[1]}"
        begin = time.monotonic()
        with pytest.raises(Unreachable):
            fetch_targets(address, query("mlp"), timeout=1.0)
        assert time.monotonic() - begin < 20


class Endless(rpc.RegistryServicer):
    """A registry whose targets have no end."""

    def GetTargets(self, request, context):
        yield pb.TargetsChunk(header=pb.TargetsHeader(names=["w"]))
        while True:
            yield pb.TargetsChunk(rows=pb.TargetsRows(steps=[1] * 1000))


@pytest.mark.parametrize(("limit", "most"), [("_MOST_SECONDS", 0.0), ("_MOST_BYTES", 1 << 20)])
def test_a_registry_that_sends_targets_without_end_is_given_up(monkeypatch, limit, most):
    monkeypatch.setattr(query_process, limit, most)
    server = grpc.server(ThreadPoolExecutor(2))
    rpc.add_RegistryServicer_to_server(Endless(), server)
    address = f"grpc://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        with pytest.raises(Unreachable, match=r"sends an answer without end, of which \d+ MiB"):
            fetch_targets(address, query("mlp"), timeout=20)
    finally:
        server.stop(None)


def test_the_cached_answer_of_the_same_query_counts_when_the_registry_is_down(
    start_registry, tmp_path, caplog
):
    server = start_registry()
    family = recorded(server.address, tmp_path)
    first = fetch_targets(server.address, query(family), timeout=20)
    server.stop()
    again = fetch_targets(server.address, query(family), timeout=0.2)
    assert again.digest == first.digest and dict(again) == pytest.approx(dict(first), nan_ok=True)
    assert "old" in caplog.text
    with pytest.raises(Unreachable):
        fetch_targets(server.address, query(family, 2e-2), timeout=0.2)


def test_a_damaged_cache_is_not_used(start_registry, tmp_path, spool):
    server = start_registry()
    family = recorded(server.address, tmp_path)
    fetch_targets(server.address, query(family), timeout=20)
    server.stop()
    (kept,) = (spool / "targets").glob("*.answer")
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(Unreachable):
        fetch_targets(server.address, query(family), timeout=0.2)


def test_a_folder_answers_by_itself(tmp_path):
    write_run(tmp_path / "runs", spec_of("mlp"), [1])
    targets = fetch_targets((tmp_path / "runs").as_uri(), query("mlp"))
    assert (targets["0.weight"], targets["0.bias"]) == (1.0, 2.0)
    with pytest.raises(FlermError, match="other"):
        fetch_targets((tmp_path / "runs").as_uri(), query("other"))
