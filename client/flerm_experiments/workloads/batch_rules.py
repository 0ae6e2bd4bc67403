"""Rules that adapt an optimiser to a bigger batch."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer


def _square_root(optimizer: Optimizer, times: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] *= math.sqrt(times)


def _moments(optimizer: Optimizer, times: int) -> None:
    for group in optimizer.param_groups:
        if "betas" in group:
            group["betas"] = tuple(beta**times for beta in group["betas"])


def _square_root_and_moments(optimizer: Optimizer, times: int) -> None:
    _square_root(optimizer, times)
    _moments(optimizer, times)


def _linear(optimizer: Optimizer, times: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] *= times


FOLLOWED = "followed"

BATCH_RULES: dict[str, Callable[[Optimizer, int], None]] = {
    "": lambda optimizer, times: None,
    "sqrt": _square_root,
    "moments": _moments,
    "sqrt-moments": _square_root_and_moments,
    "linear": _linear,
    FOLLOWED: lambda optimizer, times: None,
}
"""Functions (optimizer, times) by the rule's name. Each changes an optimiser that was set up for
the base's batch, so that it fits a batch `times` as large.

"": changes nothing.
sqrt: multiplies learning rates by √times (for Adam, Malladi et al. 2022, arXiv 2205.10287).
moments: raises Adam's betas to the power `times`: a moment then forgets a gradient after as many
    examples as in the base's run (arXiv 2507.07101).
sqrt-moments: does both.
linear: multiplies learning rates by `times` (Goyal et al. 2017, arXiv 1706.02677).
followed: changes nothing here, but a run that matches gives its batch size to `FLeRM.match`.
"""
