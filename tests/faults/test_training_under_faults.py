"""Faults of the registry while a run records or matches.

The run ends with the same bits as without the fault, and the registry holds every measurement once.
"""

from __future__ import annotations

import shutil
import signal
import socket
import time
import uuid

import numpy as np
import pytest
from gate import Gate
from ranks import TrainingRanks
from waiting import until

from flerm_client import RegistryClient
from flerm_client.cli import main
from flerm_client.spool import spool_files

STEPS = list(range(1, 13))
FAMILY = "faults/resmlp"


@pytest.fixture(
    scope="module",
    params=[pytest.param(1, marks=pytest.mark.slow), 2],
    ids=["one rank", "two ranks"],
)
def ranks(request):
    """Processes that train."""
    ranks = TrainingRanks(request.param)
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def base(ranks, tmp_path_factory):
    """A folder registry with the base recording that runs match."""
    folder = tmp_path_factory.mktemp("base")
    ranks.train("record", folder, registry=folder.as_uri(), family=FAMILY)
    return folder


@pytest.fixture(scope="module")
def undisturbed(ranks, base, tmp_path_factory):
    """The outcome of each kind of run without a server: recording equals plain training."""
    spool = tmp_path_factory.mktemp("undisturbed")
    copy = spool / "registry"
    shutil.copytree(base, copy)
    return {
        "record": ranks.train("plain", spool),
        "match": ranks.train("match", spool, registry=copy.as_uri(), family=FAMILY, every=3),
    }


class Fault:
    """A registry with a fault: `strike` begins it during a run, `heal` ends it afterwards.

    `address`: the address that the run gets.
    """

    def __init__(self, request, tmp_path) -> None:
        self.request = request
        self.token_file = tmp_path / "token"
        self.token_file.write_text("one")
        self.spool = tmp_path / "spool"
        self.begin()

    def begin(self) -> None:
        self.start_registry = self.request.getfixturevalue("start_registry")
        self.server = self.start_registry()
        self.address = self.server.address

    def strike(self) -> None: ...
    def heal(self) -> None: ...
    def end(self) -> None: ...


class Killed(Fault):
    def strike(self):
        self.server.stop(signal.SIGKILL)

    def heal(self):
        self.server = self.start_registry(db=self.server.db, grpc=self.server.grpc)


class Frozen(Fault):
    def strike(self):
        self.server.process.send_signal(signal.SIGSTOP)

    def heal(self):
        self.server.process.send_signal(signal.SIGCONT)


class Moved(Fault):
    """Restarted on another port, which the run cannot know."""

    def strike(self):
        self.server.stop()
        self.server = self.start_registry(db=self.server.db)

    def heal(self):
        assert main(["sync", "--spool", str(self.spool), "--registry", self.server.address]) == 0


class Gated(Fault):
    def begin(self):
        self.server = self.request.getfixturevalue("registry")
        self.gate = Gate(self.server.grpc)
        self.address = self.gate.address

    def heal(self):
        self.gate.behave()

    def end(self):
        self.gate.close()


class Slow(Gated):
    def strike(self):
        self.gate.behave(delay=1.0)


class Refusing(Gated):
    def strike(self):
        self.gate.behave(code="RESOURCE_EXHAUSTED")


class TokenExpires(Gated):
    """The token expires in the middle of a run; its file gets a new one afterwards."""

    def begin(self):
        super().begin()
        self.gate.behave(token="one")

    def strike(self):
        self.gate.behave(token="two")

    def heal(self):
        self.token_file.write_text("two")


@pytest.fixture(params=[Killed, Frozen, Moved, Slow, Refusing, TokenExpires])
def fault(request, tmp_path):
    """One of the faults, before it strikes."""
    fault = request.param(request, tmp_path)
    yield fault
    fault.end()


def assert_unharmed(fault: Fault, outcomes, undisturbed, steps) -> None:
    """Every rank has the weights of the run without a registry, which holds each step once."""
    assert [each["weights"] for each in outcomes] == [each["weights"] for each in undisturbed]
    run = outcomes[0]
    assert run["steps"] == steps
    with RegistryClient(fault.server.address) as client:
        until(lambda: spool_files(fault.spool) == [], "something stayed in the spool")
        stored = client.trajectory(run["recording"])
        assert client.recording(run["recording"]).status == "completed"
    assert stored.steps.tolist() == steps
    np.testing.assert_array_equal(stored.values, np.array(run["values"], np.float32))


def test_weights_are_the_same_bits_and_every_measurement_arrives_once(
    fault, ranks, base, undisturbed
):
    assert main(["sync", "--spool", str(base), "--registry", fault.server.address]) == 0
    common = {"registry": fault.address, "token_file": fault.token_file}
    matched = ranks.train(
        "match", fault.spool, family=FAMILY, every=3, pause_at=6, meanwhile=fault.strike, **common
    )
    # This run begins while the registry is still gone: recording needs none.
    begin = time.monotonic()
    recorded = ranks.train("record", fault.spool, family=f"other-{uuid.uuid4().hex[:8]}", **common)
    assert time.monotonic() - begin < 15.0, "it would wait 20 s for an answer"
    fault.heal()
    assert_unharmed(fault, matched, undisturbed["match"], STEPS[::3])
    assert_unharmed(fault, recorded, undisturbed["record"], STEPS)


def test_a_run_whose_registry_is_down_says_what_is_left_and_how_to_send_it(ranks, tmp_path):
    first, *others = ranks.train("record", tmp_path, registry="grpc://127.0.0.1:1", family="down")
    assert len(first["said"]) == 1
    assert first["said"][0].startswith(
        f"12 of 12 measurements of recording {first['recording']} are not delivered"
    )
    command = f"flerm sync --spool {tmp_path} --registry grpc://127.0.0.1:1"
    assert f"`{command}` sends what is left" in first["said"][0]
    assert all(each["said"] == [] for each in others)


@pytest.fixture(params=["down", "black hole"])
def unanswering(request):
    """An address where nobody answers."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        if request.param == "black hole":
            bound.listen(16)
        yield f"grpc://127.0.0.1:{bound.getsockname()[1]}"


def test_without_targets_every_rank_fails_in_time_with_the_same_sentence(
    unanswering, ranks, tmp_path
):
    begin = time.monotonic()
    outcomes = ranks.train("match", tmp_path, registry=unanswering, family=FAMILY, timeout=1.0)
    assert time.monotonic() - begin < 15.0
    assert {each["error"] for each in outcomes} == {"Unreachable"}
    (sentence,) = {each["message"] for each in outcomes}
    assert unanswering in sentence and "\n" not in sentence
    assert spool_files(tmp_path) == []


def test_a_match_goes_on_with_the_cached_targets(
    ranks, base, undisturbed, start_registry, tmp_path
):
    server = start_registry()
    assert main(["sync", "--spool", str(base), "--registry", server.address]) == 0
    first = ranks.train(
        "match", tmp_path / "spool", registry=server.address, family=FAMILY, every=3
    )
    server.stop()
    again = ranks.train(
        "match", tmp_path / "spool", registry=server.address, family=FAMILY, every=3, timeout=0.5
    )
    assert [each["weights"] for each in again] == [each["weights"] for each in first]
    assert [each["weights"] for each in again] == [each["weights"] for each in undisturbed["match"]]
    assert any(m != 1.0 for m in again[0]["multipliers"].values())
