"""How a run ended may be said afterwards, by who knows: its rows and remarks stay."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from flerm_client import RegistryClient


@pytest.fixture(params=["folder", "server"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    folder = f"file://{tmp_path}/registry"
    server = request.param == "server"
    address = request.getfixturevalue("registry").address if server else folder
    with RegistryClient(address) as connected:
        yield connected


def ended(client: RegistryClient, family: str, status: str = "completed") -> str:
    run = client.start_recording(family, 0.1, ["w"], [[2]])
    client.append(run, [1, 101], [[1.0], [2.0]], losses=[3.0, 2.0], tokens=[10, 20])
    client.finish(run, status, final_step=150, remarks=["b was not measured"])
    return run


def test_a_loss_found_outside_of_the_run_counts(client: RegistryClient) -> None:
    family = f"judged-{uuid.uuid4().hex}"
    run = ended(client, family)
    found = client.judge(run, 1.25)
    assert (found.status, found.final_loss, found.final_step) == ("completed", 1.25, 150)
    assert found.remarks == ("b was not measured",)
    assert client.trajectory(run).steps.tolist() == [1, 101]
    assert client.best(family).loss == 1.25


def test_a_run_may_turn_out_to_have_diverged_or_to_have_been_stopped(
    client: RegistryClient,
) -> None:
    family = f"judged-{uuid.uuid4().hex}"
    assert client.judge(ended(client, family), None, status="diverged").status == "diverged"
    stopped = client.judge(
        ended(client, family, "interrupted"), None, status="interrupted", remarks=["too slow"]
    )
    assert (stopped.status, stopped.final_loss) == ("interrupted", None)
    assert stopped.remarks == ("b was not measured", "too slow")
