"""Scaled parameter groups act inside the step only; before and after it, groups are the user's."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from measured_runs import (
    UNIT_TARGETS,
    Trace,
    backward,
    fresh,
    leave,
    loss_of,
    probe,
    probe_stream,
    same,
    step,
    vectors,
)
from torch import nn
from torch.optim import (
    SGD,
    Optimizer,
)
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from flerm_client import FLeRM

SCHEDULERS: dict[str, Any] = {
    "lambda": lambda o: LambdaLR(o, lambda t: 0.9**t),
    "step": lambda o: StepLR(o, 2),
    "cosine": lambda o: CosineAnnealingLR(o, 8),
    "onecycle": lambda o: OneCycleLR(o, 1e-2, total_steps=10),
    "sequential": lambda o: SequentialLR(o, [StepLR(o, 1), CosineAnnealingLR(o, 8)], [3]),
    "plateau": lambda o: ReduceLROnPlateau(o, patience=0, threshold=10.0),
}


@pytest.mark.parametrize("first", ["scheduler", "flerm"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers_and_checkpoints_see_the_users_own_groups(scheduler: str, first: str) -> None:
    def train(targets: dict[str, float] | None) -> tuple[Trace, list[Any]]:
        model, batches = fresh("resmlp")
        optimizer = SGD(
            [{"params": model.blocks.parameters(), "weight_decay": 0.1}], 1e-2, momentum=0.9
        )
        optimizer.add_param_group(
            {"params": [*model.input.parameters(), *model.readout.parameters()], "lr": 2e-2}
        )
        schedule = SCHEDULERS[scheduler](optimizer) if first == "scheduler" else None
        if targets:
            FLeRM.match(
                model,
                optimizer,
                probe=probe(),
                family="f",
                targets=targets,
                lr=1e-2,
                clamp=(1.0, 1.0),
            )
        schedule = schedule or SCHEDULERS[scheduler](optimizer)
        trace, seen = Trace(), []
        for batch in batches:
            loss = step(model, optimizer, batch)
            schedule.step(*([loss] if scheduler == "plateau" else []))
            trace.losses.append(loss)
            seen.append(
                [
                    {k: v for k, v in group.items() if k != "params"}
                    for group in optimizer.param_groups
                ]
            )
        return leave(trace, model, optimizer), seen

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain, matched = train(None), train(UNIT_TARGETS)
    assert same(plain, matched)


def test_an_exception_in_step_leaves_the_groups_the_users() -> None:
    model, batches = fresh("resmlp")
    optimizer = SGD(model.parameters(), 1e-2)
    FLeRM.match(model, optimizer, probe=probe(), family="f", targets=UNIT_TARGETS)
    step(model, optimizer, batches[0])
    groups = optimizer.param_groups

    def closure() -> float:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(closure)
    assert optimizer.param_groups is groups
    assert [group["lr"] for group in groups] == [1e-2]
    step(model, optimizer, batches[1])


def test_parameters_that_join_in_mid_run_train_unmatched() -> None:
    model, batches = fresh("resmlp")
    late = list(model.readout.parameters())
    early = [p for p in model.parameters() if all(p is not q for q in late)]
    optimizer = SGD(early, 1e-2)
    targets = {n: v for n, v in UNIT_TARGETS.items() if not n.startswith("readout")}
    flerm = FLeRM.match(model, optimizer, probe=probe(), family="f", targets=targets)
    step(model, optimizer, batches[0])
    optimizer.add_param_group({"params": late, "lr": 5e-2})
    before = model.readout.bias.detach().clone()
    step(model, optimizer, batches[1])
    torch.testing.assert_close(before - 5e-2 * model.readout.bias.grad, model.readout.bias.detach())
    assert "readout.bias" not in flerm.multipliers


def test_a_parameter_that_is_replaced_in_mid_run_trains_unmatched() -> None:
    model, batches = fresh("resmlp")
    optimizer = SGD(model.parameters(), 1e-2)
    FLeRM.match(model, optimizer, probe=probe(), family="f", targets=UNIT_TARGETS)
    step(model, optimizer, batches[0])
    step(model, optimizer, batches[1])
    model.input.weight = nn.Parameter(model.input.weight.detach().clone())
    optimizer.param_groups[0]["params"][0] = model.input.weight
    before = model.input.weight.detach().clone()
    step(model, optimizer, batches[2])
    assert torch.equal(model.input.weight, before.sub(model.input.weight.grad, alpha=1e-2))


class Sharpness(Optimizer):
    """Built as sharpness-aware minimisers are: around another optimiser, whose groups it shares."""

    def __init__(self, parameters: Any, **options: Any) -> None:
        super().__init__(parameters, options)
        self.base_optimizer = SGD(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.base_optimizer.step()


def test_multipliers_reach_the_optimizer_inside_another() -> None:
    rates = []
    for kind in (SGD, Sharpness):
        model, batches = fresh("resmlp")
        optimizer = kind(model.parameters(), lr=1e-2)
        FLeRM.match(model, optimizer, probe=probe_stream(), family="f", targets=UNIT_TARGETS)
        for batch in batches:
            step(model, optimizer, batch)
        rates.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*rates)


class Twice(SGD):
    """A subclass that calls super().step(), as many do."""

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        self.param_groups[0]["seen"] = self.param_groups[0].get("seen", 0) + 1
        return result


def test_a_subclass_that_calls_super_counts_once_and_keeps_the_state_in_its_groups() -> None:
    model, batches = fresh("resmlp")
    optimizer = Twice(model.parameters(), 1e-2)
    flerm = FLeRM.match(model, optimizer, probe=probe(), family="f", targets=UNIT_TARGETS)
    for batch in batches[:3]:
        backward(model, batch)
        optimizer.step()
    assert flerm.steps == 3
    assert optimizer.param_groups[0]["seen"] == 3
    assert optimizer.param_groups[0]["lr"] == 1e-2


def test_tensors_that_no_optimizer_steps_any_more_are_unmeasured() -> None:
    model, batches = fresh("resmlp")
    optimizer = SGD(
        [{"params": model.blocks.parameters()}, {"params": model.readout.parameters()}], 0.1
    )
    flerm = FLeRM.record(model, optimizer, probe=[vectors()], family="f", every=1)
    for batch in batches[:2]:
        loss_of(model(batch)).backward()
        optimizer.step()
        last = flerm.fslr
        optimizer.param_groups = optimizer.param_groups[:1]
    assert (
        set(last)
        == set(flerm.learning_rates())
        == {f"blocks.{i}.{leaf}" for i in range(3) for leaf in ("weight", "bias")}
    )


@pytest.mark.parametrize("by_keyword", [False, True])
@pytest.mark.parametrize("matched", [False, True])
def test_rates_and_decays_set_inside_a_closure_count_as_those_set_before_the_step(
    matched: bool, by_keyword: bool
) -> None:
    """All of a Lightning training step runs inside the closure."""

    def train(inside: bool) -> tuple[FLeRM, Trace]:
        model, batches = fresh("resmlp")
        wide = [p for p in model.parameters() if p.ndim == 2]
        narrow = [p for p in model.parameters() if p.ndim == 1]
        optimizer = torch.optim.AdamW([{"params": wide}, {"params": narrow}], 1e-2)
        options: dict[str, Any] = {"probe": probe(), "family": "f", "estimator": "exact"}
        if matched:
            options |= {"targets": UNIT_TARGETS, "record_every": 2}
            flerm = FLeRM.match(model, optimizer, **options)
        else:
            flerm = FLeRM.record(model, optimizer, every=2, **options)
        seen = []
        for number, batch in enumerate(batches, 1):

            def set_rates(number: int = number) -> None:
                first, second = optimizer.param_groups
                first["lr"], second["lr"] = 1e-2 * number, 1e-3 * number
                first["weight_decay"], second["weight_decay"] = 0.1 * number, 0.0

            def closure(set_rates: Any = set_rates, batch: Any = batch) -> float:
                if inside:
                    set_rates()
                return backward(model, batch)

            if not inside:
                set_rates()
            optimizer.step(closure=closure) if by_keyword else optimizer.step(closure)
            seen.append([(g["lr"], g["weight_decay"]) for g in optimizer.param_groups])
        assert seen == [[(1e-2 * n, 0.1 * n), (1e-3 * n, 0.0)] for n in range(1, len(seen) + 1)]
        return flerm, leave(Trace(), model, optimizer)

    (inside, left), (before, expected) = train(True), train(False)
    assert same(left, expected)
    assert inside.trajectory == before.trajectory
    assert inside.multipliers == before.multipliers
