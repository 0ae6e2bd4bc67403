"""Whether a step is proportional to its rate is tried on the optimiser's class."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import (
    ASGD,
    LBFGS,
    SGD,
    Adafactor,
    Adagrad,
    Adam,
    AdamW,
    Muon,
    NAdam,
    Optimizer,
    RMSprop,
    Rprop,
)
from torch.optim.optimizer import register_optimizer_step_pre_hook

from flerm_client.training.proportional_step import ALLOWED, disproportion


class AveragedSGD(SGD):
    """SGD whose weights lie between those of plain SGD and their average, as schedule-free's do."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                base = state.setdefault("base", p.detach().clone())
                average = state.setdefault("average", p.detach().clone())
                state["count"] = state.get("count", 0) + 1
                base.sub_(p.grad, alpha=group["lr"])
                average.lerp_(base, 1 / state["count"])
                p.data = 0.1 * base + 0.9 * average


class SelfTuned(SGD):
    """SGD that chooses its own rate, whatever `lr` is; its step needs a closure."""

    def step(self, closure: Any) -> None:  # type: ignore[override]
        closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.data -= 0.01 * p.grad


class Unknown(SGD):
    """An optimiser that wants something that no one else can give."""

    def __init__(self, params: Any, secret: object, lr: float = 1e-2) -> None:
        super().__init__(params, lr)


def weights() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(3, 3))]


@pytest.mark.parametrize("kind", [AveragedSGD, SelfTuned, Rprop, ASGD])
def test_a_step_that_ignores_its_rate_is_far_from_proportional(kind: Any) -> None:
    assert (disproportion(kind(weights(), lr=1e-2)) or 0.0) > 0.9


def test_a_rate_that_all_tensors_share_is_found() -> None:
    assert disproportion(LBFGS(weights(), lr=1e-2, max_iter=1)) == math.inf


def test_a_schedule_that_takes_over_late_in_a_run_is_found() -> None:
    """Adafactor's rate is at most 1/√t at step t."""
    assert (disproportion(Adafactor(weights(), lr=1e-2)) or 0.0) > 0.8
    assert disproportion(Adafactor(weights(), lr=1e-4)) == pytest.approx(0.0, abs=1e-6)


def test_a_class_that_cannot_be_made_is_not_tried() -> None:
    assert disproportion(Unknown(weights(), object())) is None


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(weights(), 1e-1, momentum=0.9, weight_decay=0.1, nesterov=True),
        Adam(weights(), 1e-1, amsgrad=True, weight_decay=0.1),
        AdamW(weights(), 1e-1, weight_decay=0.3),
        NAdam(weights()),
        RMSprop(weights(), centered=True),
        Adagrad(weights(), lr_decay=0.1),
        Muon(weights()),
    ],
    ids=lambda optimizer: type(optimizer).__name__,
)
def test_others_are_proportional_and_nothing_is_left(optimizer: Optimizer) -> None:
    called: list[object] = []
    handle = register_optimizer_step_pre_hook(lambda *_: called.append(1))
    states = torch.get_rng_state(), random.getstate()
    before = str(optimizer.state_dict())
    apart = disproportion(optimizer)
    handle.remove()
    assert apart is not None and apart < ALLOWED
    assert not called and str(optimizer.state_dict()) == before
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]


@pytest.mark.parametrize("rates", [(0.0, 1e-2), (0.0, 0.0)])
def test_groups_that_begin_at_a_rate_of_0_are_tried_at_another(rates: tuple[float, ...]) -> None:
    """Layers may be held by a rate of 0, and a loop may warm up by hand."""
    groups = [{"params": [nn.Parameter(torch.randn(4, 3))], "lr": rate} for rate in rates]
    apart = disproportion(AdamW(groups))
    assert apart is not None
    assert apart < ALLOWED
