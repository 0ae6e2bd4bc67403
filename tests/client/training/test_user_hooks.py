"""Hooks that users put on parameters hear nothing of a measurement, and do not change it; those on a step see their own groups,
and what they set there acts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from measured_runs import Trace, fresh, leave, loss_of, same, trained, vectors
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from flerm_client import FLeRM

ESTIMATORS = ["example", "kronecker", "iid", "full", "exact"]


def run(
    estimator: str, attach: Callable[[nn.Module], Any], measured: bool = True
) -> tuple[FLeRM | None, Any]:
    model, batches = fresh("resmlp")
    optimizer = Adam(model.parameters(), 1e-2)
    seen = attach(model)
    generator = torch.Generator().manual_seed(2)
    probe = [torch.randn(16, 8, generator=generator) for _ in range(4)]
    flerm = None
    if measured:
        flerm = FLeRM.record(
            model,
            optimizer,
            probe=probe,
            family="f",
            every=2,
            warmup=2,
            estimator=estimator,
            sharpness=lambda m, b: loss_of(m(b)),
        )
    for batch in batches[:4]:
        optimizer.zero_grad()
        loss_of(model(batch)).backward()
        optimizer.step()
    return flerm, seen


def on_tensors(model: nn.Module) -> list[str]:
    """`Tensor.register_hook`: tells of every gradient, and halves it."""
    calls: list[str] = []

    def hook(name: str) -> Callable[[Tensor], Tensor]:
        def halve(gradient: Tensor) -> Tensor:
            calls.append(name)
            return gradient / 2

        return halve

    for name, parameter in model.named_parameters():
        parameter.register_hook(hook(name))
    return calls


def after_accumulation(model: nn.Module) -> list[int]:
    """`register_post_accumulate_grad_hook`, as an optimiser that steps in backward has it."""
    calls: list[int] = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: calls.append(id(p)))
    return calls


@pytest.mark.parametrize("attach", [on_tensors, after_accumulation])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_they_are_called_as_often_as_without_us(
    estimator: str, attach: Callable[[nn.Module], Any]
) -> None:
    _, without = run(estimator, attach, measured=False)
    _, seen = run(estimator, attach)
    assert len(seen) == len(without) == 4 * len(list(fresh("resmlp")[0].parameters()))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_hook_that_changes_gradients_changes_training_and_no_measurement(estimator: str) -> None:
    """Adam's first step is the sign of the gradient, halved or not; so the FSLRs must be the same."""

    def first(attach: Callable[[nn.Module], Any]) -> Any:
        flerm, _ = run(estimator, attach)
        assert flerm is not None
        return flerm.trajectory.values[0]

    torch.testing.assert_close(
        torch.tensor(first(on_tensors)),
        torch.tensor(first(lambda model: None)),
        rtol=1e-3,
        atol=0.0,
        equal_nan=True,
    )


def test_they_are_back_after_it_in_their_order_and_can_be_removed() -> None:
    model, batches = fresh("resmlp")
    optimizer = Adam(model.parameters(), 1e-2)
    weight, calls = model.readout.weight, []
    handles = [weight.register_hook(lambda gradient, n=n: calls.append(n)) for n in range(3)]
    FLeRM.record(model, optimizer, probe=[vectors()], family="f", estimator="kronecker")
    loss_of(model(batches[0])).backward()
    optimizer.step()
    handles[1].remove()
    calls.clear()
    loss_of(model(batches[1])).backward()
    assert calls == [0, 2]


def test_hooks_on_modules_are_told_when_it_is_a_measurement() -> None:
    model, batches = fresh("resmlp")
    optimizer = Adam(model.parameters(), 1e-2)
    flerm = FLeRM.record(
        model, optimizer, probe=[vectors()], family="f", warmup=2, estimator="kronecker"
    )
    calls: list[bool] = []
    model.readout.register_forward_hook(lambda *_: calls.append(flerm.measuring))
    loss_of(model(batches[0])).backward()
    optimizer.step()
    assert calls == [False, True, True] and not flerm.measuring


def scheduled(
    by: str, flerm: Callable[[nn.Module, torch.optim.Optimizer], FLeRM]
) -> tuple[FLeRM, Trace]:
    """A run whose rate and momentum fall at each step: set by hand before it, or by a hook on it."""
    model, batches = fresh("resmlp")
    optimizer = SGD(model.parameters(), 1e-2, momentum=0.9)
    made = flerm(model, optimizer)

    def fall(*_: Any) -> None:
        (group,) = optimizer.param_groups
        group["lr"], group["momentum"] = group["lr"] * 0.8, group["momentum"] * 0.9

    hooks = {
        "pre-hook": optimizer.register_step_pre_hook,
        "global pre-hook": register_optimizer_step_pre_hook,
        "post-hook": optimizer.register_step_post_hook,
        "global post-hook": register_optimizer_step_post_hook,
    }
    handle = hooks[by](fall) if by in hooks else None
    trace = Trace()
    for batch in batches:
        if by == "before":
            fall()
        trace.losses += trained(model, optimizer, [batch])
        if by == "after":
            fall()
    if handle is not None:
        handle.remove()
    return made, leave(trace, model, optimizer)


@pytest.mark.parametrize(
    ("hook", "by_hand"),
    [
        ("pre-hook", "before"),
        ("global pre-hook", "before"),
        ("post-hook", "after"),
        ("global post-hook", "after"),
    ],
)
@pytest.mark.parametrize("matched", [True, False])
def test_hooks_on_a_step_see_and_set_the_users_own_groups(
    matched: bool, hook: str, by_hand: str
) -> None:
    def attach(model: nn.Module, optimizer: torch.optim.Optimizer) -> FLeRM:
        options: dict[str, Any] = {
            "probe": [torch.ones(4, 8)],
            "family": "f",
            "every": 2,
            "estimator": "exact",
        }
        if not matched:
            return FLeRM.record(model, optimizer, **options)
        return FLeRM.match(
            model,
            optimizer,
            targets={n: 1.0 for n, _ in model.named_parameters()},
            record_every=2,
            **options,
        )

    (hooked, left), (plain, expected) = scheduled(hook, attach), scheduled(by_hand, attach)
    assert same(left, expected)
    assert hooked.trajectory == plain.trajectory
    assert hooked.multipliers == plain.multipliers
