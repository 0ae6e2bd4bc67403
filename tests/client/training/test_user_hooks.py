"""Hooks that users put on parameters are not called in a measurement, and do not change one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from measured_runs import fresh, loss_of, vectors
from torch import Tensor, nn
from torch.optim import Adam

from flerm_client import FLeRM
from flerm_core.records.recording import ESTIMATORS


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
def test_hooks_on_parameters_are_called_as_often_as_without_us(
    estimator: str, attach: Callable[[nn.Module], Any]
) -> None:
    _, without = run(estimator, attach, measured=False)
    _, seen = run(estimator, attach)
    assert len(seen) == len(without) == 4 * len(list(fresh("resmlp")[0].parameters()))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_hook_that_changes_gradients_changes_training_and_no_measurement(estimator: str) -> None:
    """Adam's first step is the sign of the gradient, halved or not: the FSLRs must be the same."""

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


def test_hooks_on_parameters_keep_their_order_after_a_measurement_and_can_be_removed() -> None:
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


def test_hooks_on_modules_can_ask_whether_it_is_a_measurement() -> None:
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
