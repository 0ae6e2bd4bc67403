"""The optimisers and schedules that the workloads are trained with, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import SGD, Adagrad, Adam, Adamax, AdamW, Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler


class SignSGD(Optimizer):
    """w ← w − η · sign(∂L/∂w), without momentum (Bernstein et al. 2018)."""

    def __init__(self, params: Iterable[Any], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Makes one update. Returns the loss that `closure` computes, or None without a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad.sign(), alpha=group["lr"])
        return loss


ParamGroups = list[dict[str, Any]]

OPTIMIZERS: dict[str, Callable[[ParamGroups, float], Optimizer]] = {
    "adam": lambda groups, lr: Adam(groups, lr),
    "adamw": lambda groups, lr: AdamW(groups, lr),
    "sgd": lambda groups, lr: SGD(groups, lr, momentum=0.9),
    "adagrad": lambda groups, lr: Adagrad(groups, lr),
    "adamax": lambda groups, lr: Adamax(groups, lr),
    "signsgd": lambda groups, lr: SignSGD(groups, lr),
    "adamw-0.1": lambda groups, lr: AdamW(groups, lr, weight_decay=0.1),
}
GRADIENT_NORMALISED = frozenset(OPTIMIZERS) - {"sgd"}
"""Optimisers whose update has the same size however large the gradient is. Under µP and the
neural-tangent parametrisation they have other learning rates than SGD."""

SCHEDULES: dict[str, Callable[[Optimizer, int], LRScheduler]] = {
    "constant": lambda optimizer, _: ConstantLR(optimizer, factor=1.0),
    "cosine": lambda optimizer, steps: CosineAnnealingLR(optimizer, steps),
}
