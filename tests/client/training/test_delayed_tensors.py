"""A tensor that the first step does not move is measured, and matched, at the step that does."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from measured_runs import probe
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from flerm_client import FLeRM

RATE, LATE = 1e-3, 3
BATCH = torch.randn(12, 8, generator=torch.Generator().manual_seed(6))


class Branched(nn.Module):
    """Two branches, of which training leaves out the second until step `LATE`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 5, bias=False), nn.Linear(8, 5, bias=False)
        self.step = 1

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.first(x)
        # The probe's batches are looked at with both branches.
        return outputs if self.step < LATE and x is BATCH else outputs + self.second(x)


def loss(model: nn.Module) -> Tensor:
    return model(BATCH).square().mean()


def without_gradient(model: Branched, optimizers: list[Optimizer]) -> None:
    for each in optimizers:
        each.zero_grad()
    loss(model).backward()
    for each in optimizers:
        each.step()


def with_zero_gradient(model: Branched, optimizers: list[Optimizer]) -> None:
    for each in optimizers:
        each.zero_grad(set_to_none=False)
    (loss(model) + 0 * model.second.weight.sum()).backward()
    for each in optimizers:
        each.step()


def frozen(model: Branched, optimizers: list[Optimizer]) -> None:
    step, model.step = model.step, LATE
    model.second.requires_grad_(step >= LATE)
    without_gradient(model, optimizers)
    model.step = step


def at_rate_zero(model: Branched, optimizers: list[Optimizer]) -> None:
    step, model.step = model.step, LATE
    optimizers[-1].param_groups[-1]["lr"] = RATE if step >= LATE else 0.0
    without_gradient(model, optimizers)
    model.step = step


def by_closure(model: Branched, optimizers: list[Optimizer]) -> None:
    def closure() -> Tensor:
        for each in optimizers:
            each.zero_grad()
        found = loss(model)
        found.backward()
        return found

    for each in optimizers:
        each.step(closure)


def in_turn(model: Branched, optimizers: list[Optimizer]) -> None:
    for each in optimizers:
        for every in optimizers:
            every.zero_grad()
        loss(model).backward()
        each.step()


LOOPS: dict[str, tuple[Callable[[Branched, list[Optimizer]], None], int]] = {
    "without a gradient": (without_gradient, 1),
    "with a gradient of zeros": (with_zero_gradient, 1),
    "frozen": (frozen, 1),
    "at rate 0": (at_rate_zero, 1),
    "in a closure": (by_closure, 1),
    "by an optimizer of its own": (in_turn, 2),
}


def optimizers_of(model: Branched, count: int) -> list[Optimizer]:
    parts = [list(model.first.parameters()), list(model.second.parameters())]
    if count == 2:
        return [SGD(part, RATE) for part in parts]
    return [SGD([{"params": part} for part in parts], RATE)]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize(("train", "count"), LOOPS.values(), ids=LOOPS)
def test_a_tensor_is_matched_at_the_step_that_first_moves_it(
    train: Callable[[Branched, list[Optimizer]], None], count: int
) -> None:
    model = Branched()
    optimizers = optimizers_of(model, count)
    targets = {"first.weight": 2.0, "second.weight": 5.0}
    flerm = FLeRM.match(
        model, optimizers, probe=probe(), family="f", targets=targets, estimator="exact"
    )
    start = model.second.weight.detach().clone()
    for model.step in range(1, 6):
        if model.step == LATE:
            assert torch.equal(model.second.weight, start)
            first = flerm.multipliers["first.weight"]
            assert flerm.multipliers["second.weight"] == 1.0 != first
        train(model, optimizers)
        if model.step == LATE:
            moved = model.second.weight.detach() - start
            step = -RATE * model.second.weight.grad
    assert flerm.trajectory.steps.tolist() == [1, LATE]
    measured = flerm.trajectory.at(LATE)["second.weight"]
    m = flerm.multipliers["second.weight"]
    assert m * measured == pytest.approx(5.0, rel=2 ** (1 / 32) - 1)
    assert flerm.multipliers["first.weight"] == first
    torch.testing.assert_close(moved, m * step, rtol=1e-3, atol=1e-6)


def test_a_tensor_that_no_step_moves_costs_no_measurement() -> None:
    model = Branched()
    optimizer = SGD(model.parameters(), RATE)
    flerm = FLeRM.record(model, optimizer, probe=probe(), family="f", warmup=2)
    for _ in range(4):
        without_gradient(model, [optimizer])
    assert flerm.trajectory.steps.tolist() == [1]
