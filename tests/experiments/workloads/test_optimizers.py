"""The workloads' optimisers repeat bit for bit, and sign-SGD moves every entry by its rate."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flerm_experiments.workloads.optimizers import OPTIMIZERS
from flerm_experiments.workloads.train_loop import Job, train


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_every_optimiser_trains_and_repeats_bit_for_bit(optimizer: str) -> None:
    job = Job(
        workload="resmlp",
        lr=3e-3 if optimizer == "signsgd" else 0.01,
        steps=20,
        optimizer=optimizer,
    )
    result = train(job)
    assert result.final_loss < 0.9 * result.losses[0]
    assert train(job).losses == result.losses


def test_sign_sgd_moves_every_entry_by_its_rate() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    (optimizer,) = OPTIMIZERS["signsgd"]([{"params": [weight], "lr": 0.5}], 0.5)
    weight.grad = torch.tensor([-7.0, 0.0, 1e-9])
    optimizer.step()
    assert weight.tolist() == [1.5, 2.0, 2.5]
