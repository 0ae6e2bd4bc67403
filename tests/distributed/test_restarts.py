"""torchrun restarts a group whose rank was killed; the recording is one trajectory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from waiting import until

from flerm_client import RegistryClient
from flerm_client.spool import spool_files
from tests.conftest import StartRegistry

from .launch import torchrun


@pytest.mark.parametrize(
    ("wrapper", "registry"),
    [
        ("fsdp", "server"),
        pytest.param("ddp", "server", marks=pytest.mark.slow),
        pytest.param("ddp", "folder", marks=pytest.mark.slow),
        pytest.param("fsdp", "folder", marks=pytest.mark.slow),
    ],
)
def test_a_killed_rank_and_a_restarted_group_are_one_recording(
    wrapper: str, registry: str, start_registry: StartRegistry, tmp_path: Path
) -> None:
    address = start_registry().address if registry == "server" else (tmp_path / "registry").as_uri()
    result = torchrun(
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
