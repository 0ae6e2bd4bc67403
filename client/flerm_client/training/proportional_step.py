"""Whether an optimiser's step is proportional to its learning rate, by trying its class."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from flerm_core.measure.state_guard import RandomState

_STEPS = 3
_OLD = 1_000_000  # steps: some optimisers ignore their rate late in a run only
_USUAL_RATE = 1e-3  # where all groups begin at 0, as in a warm-up by hand
_OTHER_RATE = 1 / 64  # of the rate of the steps before
ALLOWED = 0.1
"""Of `disproportion`: weight decay and rounding stay far below, a step that ignores its rate is at
0.98."""

_OF_THE_RUN = {"params", "foreach", "fused", "capturable", "differentiable"}


def disproportion(optimizer: Optimizer) -> float | None:
    """How far a step at 1/64 of the rate is from 1/64 of the step, relative to the step.

    Fresh instances of the optimiser's class, with its settings, make the same steps on two small
    matrices; the last step of one instance has the second matrix at 1/64 of the rate, in a
    parameter group of its own, as a matched run has. The steps are tried at the beginning of a run
    and as if it were a million steps long. Infinite where the class refuses such groups.

    None for a class that cannot be tried. Of several ranks' optimisers only those of torch are
    tried, because others may communicate.
    """
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if several and not type(optimizer).__module__.startswith("torch.optim"):
        return None
    with _without_trace():
        found = [_apart(optimizer, age) for age in (0, _OLD)]
    return None if None in found else max(each for each in found if each is not None)


def _apart(optimizer: Optimizer, age: int) -> float | None:
    try:
        plain = _last_moves(optimizer, 1.0, age)
    except Exception:
        return None
    try:
        other = _last_moves(optimizer, _OTHER_RATE, age)
    except Exception:
        return math.inf
    differences = [
        float((a - b).norm() / torch.stack([a.norm(), b.norm()]).max())
        for a, b in zip(plain, other, strict=True)
    ]
    return math.inf if any(map(math.isnan, differences)) else max(differences)


def group_rate(group: Mapping[str, Any]) -> float:
    """The learning rate that a parameter group began with."""
    return float(group.get("initial_lr", group["lr"]))


def _last_moves(optimizer: Optimizer, part: float, age: int) -> list[Tensor]:
    """The last of a fresh instance's steps for two matrices, each divided by its rate.

    The second matrix's rate is `part` of the first's. The steps before count `age` times more.
    """
    group = optimizer.param_groups[0]
    arguments = inspect.signature(type(optimizer)).parameters.keys() - _OF_THE_RUN
    settings = {name: group[name] for name in arguments & group.keys()}
    rates = map(group_rate, optimizer.param_groups)
    rate = next((each for each in rates if each > 0.0), _USUAL_RATE)
    generator = torch.Generator().manual_seed(0)
    weights = [
        nn.Parameter(torch.randn((4, 3), generator=generator, dtype=torch.float64))
        for _ in range(2)
    ]
    slopes = torch.randn((_STEPS, 2, 4, 3), generator=generator, dtype=torch.float64)
    fresh: Any = type(optimizer)(weights, **settings | {"lr": rate})
    if hasattr(fresh, "train"):  # schedule-free optimisers step in this mode only
        fresh.train()
    before: list[Tensor] = list(weights)
    for step in range(_STEPS):
        if step == _STEPS - 1:
            _make_old(fresh, age)
            whole = fresh.param_groups[0]
            if part != 1.0:
                fresh.param_groups = [
                    {**whole, "params": [each], "lr": rate * own}
                    for each, own in zip(weights, (1.0, part), strict=True)
                ]
        before = [each.detach().clone() for each in weights]
        _step(fresh, weights, slopes[step])
    return [
        (new.detach() - old) / (rate * own)
        for new, old, own in zip(weights, before, (1.0, part), strict=True)
    ]


def _make_old(optimizer: Optimizer, age: int) -> None:
    for state in optimizer.state.values():
        if isinstance(state.get("step"), Tensor | int | float):
            state["step"] = state["step"] + age


def _step(optimizer: Any, weights: list[nn.Parameter], slopes: Tensor) -> None:
    """One step on the function Σ ½ w² + slope·w, whose gradient follows the weights."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            stacked = torch.stack(list(weights))
            loss = 0.5 * stacked.square().sum() + (slopes * stacked).sum()
            loss.backward()
        return loss.detach()

    needs = inspect.signature(type(optimizer).step).parameters.get("closure")
    if needs is not None and needs.default is needs.empty:
        optimizer.step(closure)
    else:
        closure()
        optimizer.step()


@contextmanager
def _without_trace() -> Iterator[None]:
    """Inside, no hook on all optimisers' steps is called; afterwards generators are as before."""
    random = RandomState()
    hooks: list[dict[int, Any]] = [_global_optimizer_pre_hooks, _global_optimizer_post_hooks]
    kept = [dict(each) for each in hooks]
    for each in hooks:
        each.clear()
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, content in zip(hooks, kept, strict=True):
            each.clear()
            each.update(content)
        random.restore()
