"""torch's Muon with products in float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Muon

from flerm_experiments.workloads.closure import loss_of


class Float32Muon(Muon):
    """`torch.optim.Muon`, whose Newton-Schulz iteration multiplies in float32 and not in bfloat16.

    Processors without bfloat16 products take over ten times as long for them. An update differs
    from torch's by the rounding of bfloat16. The update always has the root mean square of Adam's
    (`adjust_lr_fn="match_rms_adamw"`, arXiv 2502.16982), so both take one learning rate.
    """

    def __init__(self, params: Any, lr: float, **settings: Any) -> None:
        super().__init__(params, lr, **{**settings, "adjust_lr_fn": "match_rms_adamw"})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Makes one update. Returns the loss that `closure` computes, or None without a closure."""
        loss = loss_of(closure)
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)
        return loss

    def _update(self, weight: Tensor, group: dict[str, Any]) -> None:
        gradient, state = weight.grad, self.state[weight]
        assert gradient is not None
        moment = state.setdefault("momentum_buffer", torch.zeros_like(gradient))
        moment.lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(moment, group["momentum"]) if group["nesterov"] else moment
        direction = _orthogonal(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.sub_(direction, alpha=0.2 * math.sqrt(max(weight.shape)) * group["lr"])


def _orthogonal(
    matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """U Vᵀ of the singular value decomposition of `matrix`, roughly, by the quintic iteration.

    With X = `matrix` / its Frobenius norm, each step makes a X + (b G + c G²) X, G = X Xᵀ.
    """
    a, b, c = coefficients
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    found: Tensor = wide / wide.norm().clamp(min=eps)
    for _ in range(steps):
        gram = found @ found.T
        found = a * found + (b * gram + c * gram @ gram) @ found
    return found if wide is matrix else found.T
