"""Forward-mode differentiation of a module along changes of its parameters: J·ΔW without a backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from flerm_core.errors import EstimatorNotApplicable
from flerm_core.measure.distributed.sharding import whole
from flerm_core.measure.output_projection import floating_tensors


class _Bare(nn.Module):
    """A module without the hooks that are on it: FSDP2's would shard and unshard it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.forward(*args, **kwargs)


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
    mode. Parameters that FSDP2 has sharded are gathered, by all ranks at the same point; raises `EstimatorNotApplicable` where it wraps
    modules inside `module` on their own.
    """
    if any(isinstance(inner, FSDPModule) for inner in module.modules() if inner is not module):
        raise EstimatorNotApplicable(
            f"{type(module).__name__} must be differentiated as a whole, but FSDP2 wraps modules inside it"
        )
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
        # Copies of buffers: what the module writes there (statistics) must neither stay nor disturb a graph that saved them.
        duals = {path: buffer.clone() for path, buffer in module.named_buffers()}
        duals |= _gathered(module, (*args, *kwargs.values()))
        for path, change in changes.items():
            parameter = duals[path] if path in duals else module.get_parameter(path).detach()
            duals[path] = forward_ad.make_dual(parameter, change.to(parameter.dtype))
        bare = {f"module.{path}": dual for path, dual in duals.items()}
        results = outputs_of(functional_call(_Bare(module), bare, args, dict(kwargs)))
        pairs = [forward_ad.unpack_dual(output) for output in results]
        moved = [
            torch.zeros_like(pair.primal) if pair.tangent is None else pair.tangent
            for pair in pairs
        ]
        return [pair.primal for pair in pairs], moved


def _gathered(module: nn.Module, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    """Whole parameters for sharded ones, in the dtype that `module` is given (FSDP2's mixed precision)."""
    sharded = {
        path: p.detach()
        for path, p in module.named_parameters(remove_duplicate=False)
        if isinstance(p, DTensor)
    }
    dtype = next((tensor.dtype for tensor in floating_tensors(inputs)), None)
    return {
        path: whole(parameter).to(dtype or parameter.dtype) for path, parameter in sharded.items()
    }
