"""The optimisers and schedules that the workloads are trained with, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.optim import SGD, Adagrad, Adam, Adamax, AdamW, Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler

from flerm_experiments.workloads.closure import loss_of
from flerm_experiments.workloads.muon import Float32Muon


class SignSGD(Optimizer):
    """w ← w − η · sign(∂L/∂w), without momentum (Bernstein et al. 2018)."""

    def __init__(self, params: Iterable[Any], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Makes one update. Returns the loss that `closure` computes, or None without a closure."""
        loss = loss_of(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad.sign(), alpha=group["lr"])
        return loss


ParamGroups = list[dict[str, Any]]

BLOCK_MATRICES = "block_matrices"
"""The key of a parameter group that has the matrices of the repeated blocks, and nothing else.

Only the groups of optimisers in `BLOCKWISE` have the key."""

BLOCKWISE = frozenset({"muon"})
"""Optimisers that train the matrices of the repeated blocks apart from all other tensors."""


def _muon(groups: ParamGroups, lr: float) -> list[Optimizer]:
    """Muon for the matrices of the blocks, AdamW for all else, both with decay 0.1."""
    matrices, others = (
        [
            {key: value for key, value in group.items() if key != BLOCK_MATRICES}
            for group in groups
            if group[BLOCK_MATRICES] == apart
        ]
        for apart in (True, False)
    )
    return [
        Float32Muon(matrices, lr, weight_decay=0.1),
        AdamW(others, lr, weight_decay=0.1),
    ]


OPTIMIZERS: dict[str, Callable[[ParamGroups, float], Sequence[Optimizer]]] = {
    "adam": lambda groups, lr: [Adam(groups, lr)],
    "adamw": lambda groups, lr: [AdamW(groups, lr)],
    "sgd": lambda groups, lr: [SGD(groups, lr, momentum=0.9)],
    "adagrad": lambda groups, lr: [Adagrad(groups, lr)],
    "adamax": lambda groups, lr: [Adamax(groups, lr)],
    "signsgd": lambda groups, lr: [SignSGD(groups, lr)],
    "adamw-0.1": lambda groups, lr: [AdamW(groups, lr, weight_decay=0.1)],
    "adamw-1": lambda groups, lr: [AdamW(groups, lr, weight_decay=1.0)],
    "muon": _muon,
}
"""Optimiser by name: a function (parameter groups, learning rate) that gives the optimisers that
step a model together."""
GRADIENT_NORMALISED = frozenset(OPTIMIZERS) - {"sgd"}
"""Optimisers whose update has the same size however large the gradient is. Under µP and the
neural-tangent parametrisation they have other learning rates than SGD."""


def _warmup(optimizer: Optimizer, steps: int) -> LRScheduler:
    """The rate rises linearly over `steps` steps and stays."""
    return LinearLR(optimizer, start_factor=1 / steps, total_iters=steps - 1)


SCHEDULES: dict[str, Callable[[Optimizer, int], LRScheduler]] = {
    "constant": lambda optimizer, _: ConstantLR(optimizer, factor=1.0),
    "cosine": lambda optimizer, steps: CosineAnnealingLR(optimizer, steps),
    "warmup": lambda optimizer, steps: _warmup(optimizer, max(steps // 10, 1)),
}
