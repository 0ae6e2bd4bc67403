"""µP and neural-tangent rates by width, against their definitions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from flerm_experiments.workloads import WORKLOADS, Scale
from flerm_experiments.workloads.parametrization import PARAMETRIZATIONS, parameter_groups
from flerm_experiments.workloads.train_loop import Job, train


def rates(name: str, workload: str, optimizer: str, width: int) -> dict[str, float]:
    """Tensor to the multiple of the learning rate that it takes."""
    model = WORKLOADS[workload].build(Scale(width=width), seed=0)
    groups = parameter_groups(
        name, model, WORKLOADS[workload].build(Scale(), seed=0), optimizer=optimizer, lr=1.0
    )
    found = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    return {each: found[id(parameter)] for each, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", sorted(PARAMETRIZATIONS))
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_at_the_bases_own_width_all_parametrizations_are_the_standard_one(
    name: str, optimizer: str
) -> None:
    job = Job(workload="resmlp", lr=0.01, steps=5, optimizer=optimizer)
    assert set(rates(name, "decoder", optimizer, 1).values()) == {1.0}
    assert train(replace(job, parametrization=name)).losses == train(job).losses


@pytest.mark.parametrize(
    ("name", "optimizer", "hidden", "readout", "inputs", "bias"),
    [
        ("mup", "adam", 1 / 4, 1 / 4, 1, 1),
        ("mup", "signsgd", 1 / 4, 1 / 4, 1, 1),
        ("mup", "sgd", 1, 1 / 4, 4, 4),
        ("ntk", "adam", 1 / 2, 1 / 2, 1, 1),
        ("ntk", "sgd", 1 / 4, 1 / 4, 1, 1),
        ("standard", "adam", 1, 1, 1, 1),
    ],
)
def test_rates_follow_the_table(
    name: str, optimizer: str, hidden: float, readout: float, inputs: float, bias: float
) -> None:
    found = rates(name, "decoder", optimizer, 4)
    assert {
        found[f"layers.0.{each}.weight"] for each in ("attn.q", "attn.out", "ff.up", "ff.down")
    } == {hidden}
    assert found["readout.weight"] == readout
    assert found["embedding.weight"] == found["positions.weight"] == inputs
    assert found["layers.1.ff.up.bias"] == bias
    assert rates(name, "resmlp", optimizer, 4)["input.weight"] == inputs


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_mup_rates_are_those_of_the_mup_package(optimizer: str) -> None:
    mup = pytest.importorskip("mup")

    class Net(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.input, self.hidden = nn.Linear(64, width), nn.Linear(width, width)
            self.readout = mup.MuReadout(width, 10)

    model = Net(128)
    mup.set_base_shapes(model, Net(32), delta=Net(64))
    theirs = {"adam": mup.MuAdam, "sgd": mup.MuSGD}[optimizer](model.parameters(), lr=1.0)
    expected = {id(p): group["lr"] for group in theirs.param_groups for p in group["params"]}
    plain = {
        id(p): group["lr"]
        for group in parameter_groups("mup", model, Net(32), optimizer=optimizer, lr=1.0)
        for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        # The mup package divides the readout's output by the width in the forward pass; its rate is
        # then 1 (Adam) or n (SGD).
        if name != "readout.weight":
            assert plain[id(parameter)] == expected[id(parameter)], name


def test_the_readout_starts_smaller_under_mup_and_everything_else_as_before() -> None:
    plain, scaled = (WORKLOADS["resmlp"].build(Scale(width=4), seed=0) for _ in range(2))
    parameter_groups(
        "mup", scaled, WORKLOADS["resmlp"].build(Scale(), seed=0), optimizer="adam", lr=1.0
    )
    before = dict(plain.named_parameters())
    for name, parameter in scaled.named_parameters():
        assert torch.equal(
            parameter, before[name] / 2 if name == "readout.weight" else before[name]
        ), name
