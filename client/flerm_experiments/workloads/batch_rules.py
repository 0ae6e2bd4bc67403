"""Published rules that adapt the learning rate to a bigger batch without matching."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer


def _square_root(optimizer: Optimizer, times: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] *= math.sqrt(times)


def _square_root_and_moments(optimizer: Optimizer, times: int) -> None:
    _square_root(optimizer, times)
    for group in optimizer.param_groups:
        if "betas" in group:
            group["betas"] = tuple(beta**times for beta in group["betas"])


def _linear(optimizer: Optimizer, times: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] *= times


BATCH_RULES: dict[str, Callable[[Optimizer, int], None]] = {
    "": lambda optimizer, times: None,
    "sqrt": _square_root,
    "sqrt-moments": _square_root_and_moments,
    "linear": _linear,
}
"""Functions (optimizer, times) by the rule's name. Each changes an optimiser that was set up for
the base's batch, so that it fits a batch `times` as large.

"": changes nothing.
sqrt: multiplies learning rates by √times (for Adam, Malladi et al. 2022, arXiv 2205.10287).
sqrt-moments: does so too, and raises Adam's betas to the power `times`: a moment then forgets a
    gradient after as many examples as in the base's run (arXiv 2507.07101). Such a run cannot be
    matched, because its betas differ from the base's.
linear: multiplies learning rates by `times` (Goyal et al. 2017, arXiv 1706.02677).
"""
