"""The closure that may be given to an optimiser's step."""

from __future__ import annotations

from collections.abc import Callable

import torch


def loss_of(closure: Callable[[], float] | None) -> float | None:
    """The loss that `closure` computes, with gradients on; None without a closure."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
