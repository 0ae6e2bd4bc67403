"""Data parallelism without DDP: ranks that average gradients by hand measure and match as one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flerm_client import FLeRM

from .hand_made import STEPS, batch_of, model_and_optimizers, probe_of_rank, targets
from .launch import on_ranks


def test_two_ranks_are_one_process_with_both_batches(tmp_path: Path) -> None:
    result = on_ranks(2, "hand_made_replicas.py", "by hand", folder=tmp_path)
    assert result.code == 0, result.output
    first, second = result.ranks
    assert "say which ranks hold replicas of it with process_group=" in first["refused"]
    assert first["multipliers"] == second["multipliers"]
    assert all(map(torch.equal, first["weights"], second["weights"]))
    # Every step 99 times, then every second one up to the 130th.
    assert [rank["looks"] for rank in result.ranks] == [99 + 16] * 2
    for rank in result.ranks:
        saved, resumed = rank["parts"]
        assert len(saved) == 2 and saved == resumed, "each rank went on by its own part"
        assert rank["resumed"] == (STEPS, rank["multipliers"], rank["fslr"])

    model, optimizers = model_and_optimizers()
    probe = [torch.cat([probe_of_rank(rank)[0] for rank in range(2)])]
    flerm = FLeRM.match(
        model, optimizers, probe=probe, family="f", estimator="exact", lr=1e-2, targets=targets()
    )
    for model.step in range(STEPS):
        model(
            torch.cat([batch_of(model.step, rank) for rank in range(2)])
        ).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert first["steps"] == [1, 2], "the branch first moves at step 2"
    assert first["fslr"] == pytest.approx(flerm.fslr, rel=1e-3)
    assert all(m != 1.0 for m in flerm.multipliers.values())
    assert first["multipliers"] == flerm.multipliers
    torch.testing.assert_close(first["weights"], [p.detach() for p in model.parameters()])


@pytest.mark.slow
def test_two_ranks_under_fabric_measure_as_one_process_with_both_batches(tmp_path: Path) -> None:
    result = on_ranks(2, "hand_made_replicas.py", "fabric", folder=tmp_path)
    assert result.code == 0, result.output

    model, (optimizer, _) = model_and_optimizers()
    model.step = 1
    probe = [torch.cat([probe_of_rank(rank)[0] for rank in range(2)])]
    flerm = FLeRM.record(model, optimizer, probe=probe, family="f", estimator="exact")
    model(torch.cat([batch_of(0, rank) for rank in range(2)])).square().mean().backward()
    optimizer.step()
    assert result.ranks[0] == result.ranks[1] == pytest.approx(flerm.fslr, rel=1e-3)
