"""What the environment says reaches every rank: a run of two ranks is recorded once, and matched
alike on both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flerm_client import RegistryClient
from flerm_client.training.run_instructions import RunInstructions

from .launch import Outcome, on_ranks, torchrun


@pytest.fixture(params=["forked", "torchrun"])
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    start = on_ranks if request.param == "forked" else torchrun

    def said(width: int, said: RunInstructions | None) -> Outcome:
        variables = RunInstructions(mode="record").variables() | {"FLERM_MODE": ""}
        variables = variables if said is None else said.variables()
        variables |= {"FLERM_REGISTRY": f"file://{tmp_path}/registry", "WIDTH": str(width)}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        outcome = start(2, "instructed.py", folder=tmp_path)
        assert outcome.code == 0, outcome.output
        return outcome

    return said


# The quick test of two ranks is that of the GPT in tests/examples.
@pytest.mark.slow
def test_two_ranks_are_recorded_and_matched_as_said(run: Any, tmp_path: Path) -> None:
    plain = run(8, None).ranks
    base = run(8, RunInstructions(mode="record", family="net", lr=0.01)).ranks
    assert [rank["losses"] for rank in base] == [rank["losses"] for rank in plain]
    assert [rank["measurements"] for rank in plain] == [0, 0]
    said = RunInstructions(mode="match", family="net", lr=0.01, role="scaled", variant="matched")
    first, second = run(32, said).ranks
    assert first["multipliers"] == second["multipliers"] != {}
    with RegistryClient(f"file://{tmp_path}/registry") as registry:
        found = {each.spec.role: each for each in registry.recordings("net")}
    assert found.keys() == {"base", "scaled"}
    assert found["base"].spec.world_size == 2
