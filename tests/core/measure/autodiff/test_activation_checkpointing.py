"""Activation checkpointing: non-reentrant changes nothing; reentrant falls back to kronecker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from measured_runs import ResMLP, loss_of, vectors
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.checkpoint import checkpoint

from flerm_client import FLeRM

PEAK_MEMORY = Path(__file__).parent / "jobs" / "peak_memory.py"
PAGES = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "OMP_NUM_THREADS": "1",
}  # what is freed goes back, so that memory in use shows


class Checkpointed(ResMLP):
    """Each block in a checkpoint of its own."""

    reentrant: bool | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.input(x)
        for block in self.blocks:
            x = x + torch.relu(
                block(x)
                if self.reentrant is None
                else checkpoint(block, x, use_reentrant=self.reentrant)
            )
        return self.readout(x)


def measured(reentrant: bool | None, estimator: str) -> tuple[str, dict[str, float], list[Tensor]]:
    torch.manual_seed(2)
    model = Checkpointed().double()
    model.reentrant = reentrant
    optimizer = SGD(model.parameters(), 1e-2)
    flerm = FLeRM.record(
        model, optimizer, probe=[vectors().double()], family="f", estimator=estimator, warmup=2
    )
    loss_of(model(vectors().double())).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    return flerm.estimator, flerm.fslr, gradients


@pytest.mark.parametrize("estimator", ["example", "kronecker", "exact"])
def test_non_reentrant_checkpoints_change_nothing(estimator: str) -> None:
    plain, checkpointed = measured(None, estimator), measured(False, estimator)
    assert checkpointed[0] == estimator
    assert checkpointed[1] == pytest.approx(plain[1], rel=1e-12)


@pytest.mark.slow
def test_a_measurement_keeps_what_checkpoints_save() -> None:
    """Beside activations a measurement needs W_old, the training's gradients and temporaries."""

    def peaks(how: str) -> dict[str, float]:
        job = [sys.executable, str(PEAK_MEMORY), how]
        return json.loads(
            subprocess.run(job, env=os.environ | PAGES, check=True, capture_output=True).stdout
        )

    whole, checkpointed = peaks("whole"), peaks("checkpointed")
    assert checkpointed["plain"] < 0.25 * whole["plain"]
    for measurement in ("first", "later"):
        extra = whole[measurement] - whole["plain"]
        assert extra < 20.0  # of activations there are 56 MiB
        assert checkpointed[measurement] - checkpointed["plain"] < extra + 2.0
    assert max(whole["stays"], checkpointed["stays"]) < 4.0  # of weights there are 6 MiB


def test_reentrant_checkpoints_are_measured_by_one_sample_a_draw() -> None:
    with pytest.warns(
        UserWarning, match="one sample a draw .*use_reentrant=True hides the modules"
    ):
        name, found, _ = measured(True, "example")
    assert name == "example"
    assert found == pytest.approx(measured(None, "full")[1], rel=1e-12)


def test_reentrant_checkpoints_are_matched_to_targets_of_example() -> None:
    model = Checkpointed()
    model.reentrant = True
    optimizer = SGD(model.parameters(), 1e-2)
    targets = {name: 1.0 for name, _ in model.named_parameters()}
    flerm = FLeRM.match(model, optimizer, probe=[vectors()], family="f", targets=targets)
    loss_of(model(vectors())).backward()
    with pytest.warns(UserWarning, match="one sample a draw"):
        optimizer.step()
    assert all(multiplier != 1.0 for multiplier in flerm.multipliers.values())


def test_hooks_on_accumulated_gradients_are_not_called() -> None:
    model: nn.Module = Checkpointed()
    model.reentrant = True
    heard: list[Tensor] = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(heard.append)
    optimizer = SGD(model.parameters(), 1e-2)
    FLeRM.record(model, optimizer, probe=[vectors()], family="f", estimator="kronecker")
    for _ in range(2):
        loss_of(model(vectors())).backward()
        optimizer.step()
    assert len(heard) == 2 * len(list(model.parameters()))
