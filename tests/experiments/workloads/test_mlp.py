"""Deep networks: the linear one is linear, the ReLU one is not."""

from __future__ import annotations

import math

import pytest
import torch

from flerm_experiments.workloads import WORKLOADS, Scale


@pytest.mark.parametrize("linear", [True, False])
def test_a_deep_linear_network_is_linear_and_a_relu_one_is_not(linear: bool) -> None:
    workload = WORKLOADS["mlp-linear" if linear else "mlp"]
    model = workload.build(Scale(width=2, depth=2), seed=0)
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == {
        "input.weight": (64, 64),
        **{f"layers.{j}.weight": (64, 64) for j in range(6)},
        "readout.weight": (10, 64),
    }
    x, y = (next(workload.batches(seed=seed))[0] for seed in (0, 1))
    with torch.no_grad():
        error = (model(x + y) - model(x) - model(y)).abs().max() / model(x).abs().max()
    assert (error < 1e-5) == linear
    gain = 1 if linear else 2
    assert model.get_parameter("layers.3.weight").std().item() == pytest.approx(
        math.sqrt(gain / 64), rel=0.05
    )
