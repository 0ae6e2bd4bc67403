"""Published rules for the learning rate and the moments of another batch size."""

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
"""Rule to what it changes in an optimiser that was set up for the base's batch. The second argument
is the batch as a multiple of the base's.

"": nothing.
sqrt: rates times the square root (for Adam, Malladi et al. 2022, arXiv 2205.10287).
sqrt-moments: the same, and moments that forget a gradient after as many examples as the base's do
    (arXiv 2507.07101). Such a run cannot be matched: its moments are not those of the base.
linear: rates times the multiple (Goyal et al. 2017, arXiv 1706.02677).
"""
