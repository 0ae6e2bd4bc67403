"""Every kind of optimiser: measured around its whole step, or refused by name before training starts."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
from measured_runs import Trace, fresh, leave, loss_of, same
from torch import nn
from torch.optim import ASGD, LBFGS, SGD, Adafactor, Adam, AdamW, Muon, Optimizer, Rprop
from torch.optim.lr_scheduler import OneCycleLR

from flerm_client import FLeRM
from flerm_client.training.optimizer_info import describe
from flerm_core.errors import InvalidInput, Unsupported


def probe() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(32, 8, generator=generator) for _ in range(4)]


def ones(model: nn.Module) -> dict[str, float]:
    return {name: 1.0 for name, _ in model.named_parameters()}


def backward(model: nn.Module, batch: torch.Tensor) -> float:
    model.zero_grad()
    loss = loss_of(model(batch))
    loss.backward()
    return loss.item()


def test_muon_beside_adamw_leaves_no_trace() -> None:
    def train(record: bool) -> Trace:
        model, batches = fresh("resmlp")
        both = [
            Muon([p for p in model.parameters() if p.ndim == 2], 1e-2),
            AdamW([p for p in model.parameters() if p.ndim == 1], 1e-3),
        ]
        if record:
            FLeRM.record(model, both, probe=probe(), family="f", lr=1e-2, every=3)
        trace = Trace()
        for batch in batches:
            trace.losses.append(backward(model, batch))
            for each in both:
                each.step()
        return leave(trace, model, *both)

    assert same(train(False), train(True))


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_gradscaler_skips_is_measured_at_the_next(fused: bool) -> None:
    def train(record: bool) -> tuple[Trace, list[int]]:
        model, batches = fresh("resmlp")
        optimizer = Adam(model.parameters(), 1e-2, fused=fused)
        flerm = (
            FLeRM.record(model, optimizer, probe=probe(), family="f", every=100) if record else None
        )
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120, growth_interval=100)
        trace = Trace()
        for batch in batches:
            model.zero_grad()
            loss = loss_of(model(batch))
            scaler.scale(loss).backward()
            if len(trace.losses) == 0:
                next(model.parameters()).grad[0] = torch.inf  # the first step overflows
            scaler.step(optimizer)
            scaler.update()
            trace.losses.append(loss.item())
        return leave(trace, model, optimizer), flerm.trajectory.steps.tolist() if flerm else []

    plain, _ = train(False)
    recorded, steps = train(True)
    assert same(plain, recorded)
    assert len(steps) == 1


def test_a_closure_runs_once_and_is_measured() -> None:
    model, batches = fresh("resmlp")
    optimizer = SGD(model.parameters(), 1e-2)
    flerm = FLeRM.match(
        model, optimizer, probe=probe(), family="f", targets=ones(model), estimator="exact"
    )
    calls = []

    def closure() -> float:
        calls.append(1)
        return backward(model, batches[0])

    loss = optimizer.step(closure)
    assert isinstance(loss, float) and calls == [1]
    assert flerm.steps == 1
    assert all(
        m * flerm.fslr[n] == pytest.approx(1.0, rel=0.03) for n, m in flerm.multipliers.items()
    )


class Twice(SGD):
    """A subclass that calls super().step(), as many do."""

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        self.param_groups[0]["seen"] = self.param_groups[0].get("seen", 0) + 1
        return result


def test_a_subclass_that_calls_super_counts_once_and_keeps_the_state_in_its_groups() -> None:
    model, batches = fresh("resmlp")
    optimizer = Twice(model.parameters(), 1e-2)
    flerm = FLeRM.match(model, optimizer, probe=probe(), family="f", targets=ones(model))
    for batch in batches[:3]:
        backward(model, batch)
        optimizer.step()
    assert flerm.steps == 3
    assert optimizer.param_groups[0]["seen"] == 3
    assert optimizer.param_groups[0]["lr"] == 1e-2


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
        "LBFGS cannot be measured or matched: it chooses its step lengths by a line search",
    ),
    (Rprop, {}, "Rprop cannot be measured or matched: its step sizes adapt by themselves"),
    (ASGD, {}, "ASGD cannot be measured or matched: its step is not proportional"),
    (Adafactor, {}, "Adafactor cannot be measured or matched: it scales its step by the weights"),
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


@pytest.mark.parametrize("name", ["Prodigy", "AdamWScheduleFree", "ZeroRedundancyOptimizer"])
def test_so_are_those_of_other_packages_by_their_name(name: str) -> None:
    model, _ = fresh("resmlp")
    kind = types.new_class(name, (SGD,))
    with pytest.raises(Unsupported, match=f"{name} cannot be measured or matched"):
        FLeRM.record(model, kind(model.parameters(), 1e-2), probe=probe(), family="f")


def test_so_are_those_that_wrap_one_that_could_be_measured() -> None:
    """DeepSpeed's are no torch optimisers, and hand on to one over flat partitions."""
    model, _ = fresh("resmlp")
    zero = types.new_class("DeepSpeedZeroOptimizer", (types.new_class("DeepSpeedOptimizer"),))()
    zero.optimizer = SGD(model.parameters(), 1e-2)
    with pytest.raises(
        Unsupported,
        match="DeepSpeedZeroOptimizer cannot be measured or matched: it keeps the parameters in flat",
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


@pytest.mark.slow
def test_a_compiled_model_leaves_no_trace() -> None:
    def train(record: bool) -> Trace:
        model, batches = fresh("resmlp")
        compiled = torch.compile(model)
        optimizer = Adam(compiled.parameters(), 1e-2)
        if record:
            FLeRM.record(compiled, optimizer, probe=probe(), family="f", every=2)
        trace = Trace()
        for batch in batches:
            trace.losses.append(backward(compiled, batch))
            optimizer.step()
        return leave(trace, model, optimizer)

    assert same(train(False), train(True))


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
