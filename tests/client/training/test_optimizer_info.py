"""Optimisers are described, or refused by name where their update is not proportional to a rate."""

from __future__ import annotations

import types
from typing import Any

import pytest
import transformers.optimization as transformers
from measured_runs import (
    backward,
    fresh,
    probe,
)
from torch.optim import (
    ASGD,
    LBFGS,
    SGD,
    Adafactor,
    AdamW,
    Optimizer,
    Rprop,
)
from torch.optim.lr_scheduler import (
    OneCycleLR,
)

from flerm_client import FLeRM
from flerm_client.training.optimizer_info import describe
from flerm_core.errors import InvalidInput, Unsupported


def test_a_wrapper_around_an_optimizer_is_looked_through() -> None:
    class Wrapper(Optimizer):
        """As accelerate's: an Optimizer in name, which hands everything to the one inside."""

        def __init__(self, optimizer: Optimizer) -> None:
            self.optimizer = optimizer

        @property
        def param_groups(self) -> Any:
            return self.optimizer.param_groups

        def step(self, closure: Any = None) -> Any:
            return self.optimizer.step(closure)

    model, batches = fresh("resmlp")
    wrapper = Wrapper(SGD(model.parameters(), 1e-2))
    flerm = FLeRM.record(model, wrapper, probe=probe(), family="f")
    backward(model, batches[0])
    wrapper.step()
    assert flerm.trajectory.steps.tolist() == [1]


REFUSED = [
    (
        LBFGS,
        {},
        "LBFGS cannot be measured or matched: it chooses its step lengths by itself",
    ),
    (Rprop, {}, "Rprop cannot be measured or matched: its step sizes adapt by themselves"),
    (ASGD, {}, "ASGD cannot be measured or matched: its step is not proportional"),
    (Adafactor, {}, "Adafactor cannot be measured or matched: it scales its step by a schedule"),
]


@pytest.mark.parametrize(
    ("kind", "options", "sentence"), REFUSED, ids=[kind.__name__ for kind, _, _ in REFUSED]
)
def test_an_update_that_is_not_proportional_to_its_rate_is_refused(
    kind: Any, options: dict[str, Any], sentence: str
) -> None:
    model, _ = fresh("resmlp")
    with pytest.raises(Unsupported, match=sentence):
        FLeRM.record(model, kind(model.parameters(), **options), probe=probe(), family="f")


def test_an_optimizer_over_parts_of_the_parameters_is_refused_by_its_name() -> None:
    model, _ = fresh("resmlp")
    kind = types.new_class("ZeroRedundancyOptimizer", (SGD,))
    with pytest.raises(Unsupported, match="ZeroRedundancyOptimizer cannot be measured or matched"):
        FLeRM.record(model, kind(model.parameters(), 1e-2), probe=probe(), family="f")


def test_a_name_alone_refuses_nothing_where_the_trial_finds_the_step_proportional() -> None:
    """transformers' Adafactor is, with a rate of its user's and no schedule of its own."""
    model, _ = fresh("resmlp")
    fixed = transformers.Adafactor(
        model.parameters(), lr=1e-3, relative_step=False, scale_parameter=False
    )
    FLeRM.record(model, fixed, probe=probe(), family="f").close("interrupted")
    prodigy = types.new_class("Prodigy", (SGD,))
    FLeRM.record(model, prodigy(model.parameters(), 1e-2), probe=probe(), family="f").close(
        "interrupted"
    )


def test_where_no_trial_can_be_made_the_name_decides() -> None:
    model, _ = fresh("resmlp")
    with pytest.raises(Unsupported, match="Adafactor cannot be measured or matched: it scales"):
        scheduled = transformers.Adafactor(model.parameters())
        FLeRM.record(model, scheduled, probe=probe(), family="f")


def test_an_optimizer_is_refused_by_name_also_where_it_wraps_one_that_could_be_measured() -> None:
    """DeepSpeed's are no torch optimisers, and hand on to one over flat partitions."""
    model, _ = fresh("resmlp")
    zero = types.new_class("DeepSpeedZeroOptimizer", (types.new_class("DeepSpeedOptimizer"),))()
    zero.optimizer = SGD(model.parameters(), 1e-2)
    with pytest.raises(
        Unsupported,
        match="DeepSpeedZeroOptimizer cannot be measured or matched: "
        "it keeps the parameters in flat",
    ):
        FLeRM.record(model, zero, probe=probe(), family="f")


def test_several_initial_rates_need_the_key_named() -> None:
    model, _ = fresh("resmlp")
    groups = [
        {"params": model.blocks.parameters(), "lr": 1e-2},
        {"params": model.readout.parameters(), "lr": 1e-3},
    ]
    with pytest.raises(
        InvalidInput, match=r"lr= must be given: .* different learning rates \(0\.001, 0\.01\)"
    ):
        FLeRM.record(model, SGD(groups), probe=probe(), family="f")


def test_recorded_are_the_settings_that_shape_the_update_and_no_labels() -> None:
    model, _ = fresh("resmlp")
    groups = [
        {"params": model.blocks.parameters(), "name": "blocks"},
        {"params": model.readout.parameters(), "momentum": 0.8},
    ]
    plain = SGD(groups, 1e-2, momentum=0.9, foreach=True)
    OneCycleLR(plain, 1e-2, total_steps=10, cycle_momentum=False)
    kind, settings = describe([plain])
    assert kind == "SGD"
    assert {name: value for name, value in settings.items() if value} == {"momentum": [0.9, 0.8]}
    assert "decoupled_weight_decay" not in describe([AdamW(model.parameters())])[1]
