"""The workloads' optimisers repeat bit for bit, and sign-SGD moves every entry by its rate."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flerm_experiments.workloads import WORKLOADS, Scale
from flerm_experiments.workloads.held_norms import HeldNorms
from flerm_experiments.workloads.optimizers import OPTIMIZERS, SCHEDULES
from flerm_experiments.workloads.parametrization import parameter_groups
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


def test_muon_trains_the_matrices_of_the_blocks_and_adamw_all_else() -> None:
    model = WORKLOADS["decoder"].build(Scale(), seed=0)
    groups = parameter_groups("standard", model, model, optimizer="muon", lr=0.5)
    muon, adamw = OPTIMIZERS["muon"](groups, 0.5)
    trained = {
        name: next(
            type(each).__name__
            for each in (muon, adamw)
            for group in each.param_groups
            if any(parameter is other for other in group["params"])
        )
        for name, parameter in model.named_parameters()
    }
    matrices = {f"attn.{each}.weight" for each in ("q", "k", "v", "out")}
    matrices |= {"ff.up.weight", "ff.down.weight"}
    blocks = {f"layers.{block}.{each}" for block in (0, 1) for each in matrices}
    assert {name for name, by in trained.items() if by == "Float32Muon"} == blocks
    assert {by for name, by in trained.items() if name not in blocks} == {"AdamW"}
    assert {group["lr"] for each in (muon, adamw) for group in each.param_groups} == {0.5}


def test_a_warm_up_rises_over_a_tenth_of_the_run_and_stays() -> None:
    (optimizer,) = OPTIMIZERS["adam"]([{"params": [nn.Parameter(torch.ones(1))], "lr": 1.0}], 1.0)
    schedule = SCHEDULES["warmup"](optimizer, 40)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


def test_held_norms_scale_the_matrices_of_the_blocks_back_and_nothing_else() -> None:
    model = WORKLOADS["decoder"].build(Scale(), seed=0)
    matrix, bias = model.layers[0].ff.up.weight, model.layers[0].ff.up.bias
    before, readout = matrix.detach().clone(), model.readout.weight.detach().clone()
    held = HeldNorms(model)
    with torch.no_grad():
        for parameter in (matrix, bias, model.readout.weight):
            parameter.mul_(3.0).add_(0.5)
    turned = matrix.detach().clone()
    held.restore()
    assert matrix.norm().item() == pytest.approx(before.norm().item())
    torch.testing.assert_close(matrix / matrix.norm(), turned / turned.norm())
    assert bias.tolist() == [0.5] * len(bias)
    torch.testing.assert_close(model.readout.weight, 3 * readout + 0.5)
