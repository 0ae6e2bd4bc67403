"""torchrun restarts a group whose rank was killed; the recording is one trajectory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from waiting import until

from flerm_client import RegistryClient
from flerm_client.spool import spool_files
from tests.conftest import StartRegistry

from .launch import Outcome, torchrun, under_an_agent


@pytest.mark.parametrize(
    ("launcher", "wrapper", "registry"),
    [
        (under_an_agent, "fsdp", "server"),
        *(
            pytest.param(torchrun, wrapper, registry, marks=pytest.mark.slow)
            for wrapper in ("ddp", "fsdp")
            for registry in ("server", "folder")
        ),
    ],
)
def test_a_killed_rank_and_a_restarted_group_are_one_recording(
    launcher: Callable[..., Outcome],
    wrapper: str,
    registry: str,
    start_registry: StartRegistry,
    tmp_path: Path,
) -> None:
    address = start_registry().address if registry == "server" else (tmp_path / "registry").as_uri()
    result = launcher(
        2, "restarted.py", wrapper, address, folder=tmp_path, seconds=110.0, restarts=1
    )
    assert result.code == 0, result.output
    if registry == "server":
        until(lambda: not spool_files(tmp_path / "spool"), "measurements were not delivered")
    assert [rank["began at"] for rank in result.ranks] == [5, 5]
    with RegistryClient(address) as client:
        (recording,) = client.recordings("restarted")
        stored = client.trajectory(recording.spec.id)
    assert (recording.spec.id, recording.status, recording.attempt) == (
        result.ranks[0]["id"],
        "completed",
        2,
    )
    assert stored.steps.tolist() == [1, 3, 5, 7, 9]
    for rank in result.ranks:
        assert rank["steps"] == stored.steps.tolist()
        np.testing.assert_array_equal(rank["own"], stored.values)
        np.testing.assert_array_equal(rank["undisturbed"], stored.values)
    assert np.isfinite(stored.losses).all()
