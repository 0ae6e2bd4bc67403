"""Forward-mode differentiation of a module along changes of its parameters: J·ΔW without a backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel


def derivative(
    module: nn.Module,
    changes: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    outputs_of: Callable[[Any], list[Tensor]],
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs of `module(*args, **kwargs)` and how each moves when the parameters at the paths of `changes` move by them, at
    once.

    `changes` are cast to their parameter's dtype. Attention runs by plain matrix products: its fused kernels have no forward
    mode.
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
        # Copies of buffers: what the module writes there (statistics) must neither stay nor disturb a graph that saved them.
        duals = {path: buffer.clone() for path, buffer in module.named_buffers()}
        for path, change in changes.items():
            parameter = module.get_parameter(path).detach()
            duals[path] = forward_ad.make_dual(parameter, change.to(parameter.dtype))
        pairs = [forward_ad.unpack_dual(output) for output in outputs_of(functional_call(module, duals, args, dict(kwargs)))]
        moved = [torch.zeros_like(pair.primal) if pair.tangent is None else pair.tangent for pair in pairs]
        return [pair.primal for pair in pairs], moved
