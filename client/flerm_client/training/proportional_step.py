"""Whether an optimiser's step is proportional to its learning rate, by trying its class."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from flerm_core.errors import Unsupported
from flerm_core.measure.state_guard import RandomState

_STEPS = 3
_OTHER_RATE = 1 / 64  # of the rate of the steps before
_ALLOWED = 0.1  # weight decay and rounding stay far below, a step that ignores its rate is at 0.98
_OF_THE_RUN = {"params", "foreach", "fused", "capturable", "differentiable"}


def refuse_disproportionate(optimizer: Optimizer) -> None:
    """Raises `Unsupported` where a step at 1/64 of the rate is not 1/64 of the step.

    Two fresh instances of the optimiser's class, with its settings, make the same steps on a small
    matrix, the last one at different rates. A class that cannot be tried so is not refused. Of
    several ranks' optimisers only those of torch are tried, because others may communicate.
    """
    kind = type(optimizer)
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if several and not kind.__module__.startswith("torch.optim"):
        return
    try:
        with _without_trace():
            moves = [_last_move(optimizer, part) for part in (1.0, _OTHER_RATE)]
    except Exception:
        return
    apart = float((moves[0] - moves[1]).norm() / max(each.norm() for each in moves))
    if apart > _ALLOWED:
        raise Unsupported(
            f"{kind.__name__} cannot be measured or matched: its step is not proportional to its "
            f"learning rate (tried at 1/64 of the rate, it is {100 * apart:.0f} % off); "
            "use an optimizer such as AdamW"
        )


def _last_move(optimizer: Optimizer, part: float) -> Tensor:
    """The last of a fresh instance's steps, at `part` of the rate, divided by its rate."""
    group = optimizer.param_groups[0]
    arguments = inspect.signature(type(optimizer)).parameters.keys() - _OF_THE_RUN
    settings = {name: group[name] for name in arguments & group.keys()}
    rate = float(group.get("initial_lr", group["lr"]))
    generator = torch.Generator().manual_seed(0)
    weights = nn.Parameter(torch.randn((4, 3), generator=generator, dtype=torch.float64))
    gradients = torch.randn((_STEPS, 4, 3), generator=generator, dtype=torch.float64)
    fresh: Any = type(optimizer)([weights], **settings | {"lr": rate})
    if hasattr(fresh, "train"):  # schedule-free optimisers step in this mode only
        fresh.train()
    before = weights.detach().clone()
    for step in range(_STEPS):
        if step == _STEPS - 1:
            rate *= part
            for each in fresh.param_groups:
                each["lr"] = rate
        before = weights.detach().clone()
        weights.grad = gradients[step].clone()
        needs_closure = inspect.signature(type(fresh).step).parameters.get("closure")
        if needs_closure is not None and needs_closure.default is needs_closure.empty:
            fresh.step(lambda: 1.0)
        else:
            fresh.step()
    return (weights.detach() - before) / rate


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
