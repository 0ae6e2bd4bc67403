"""J·ΔW by forward-mode differentiation: how a module's outputs move with its parameters."""

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
from flerm_core.measure.distributed.sharding import full_tensor
from flerm_core.measure.output_projection import floating_tensors


class _WithoutHooks(nn.Module):
    """Runs a module without the hooks on it: FSDP2's would gather and reshard its parameters."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.forward(*args, **kwargs)


def jvp_along(
    module: nn.Module,
    changes: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    outputs_of: Callable[[Any], list[Tensor]],
) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs of `module(*args, **kwargs)`, and J·ΔW of each when all `changes` act together.

    changes: ΔW by the parameter's path in `module`; each is cast to its parameter's dtype.
    outputs_of: the output tensors in what the module returns.

    Attention runs by plain matrix products, because its fused kernels have no forward mode.
    Parameters that FSDP2 has sharded are gathered, by all ranks at the same point. Raises
    `EstimatorNotApplicable` where FSDP2 wraps modules inside `module`: these gather in their own
    forwards only.
    """
    if any(isinstance(inner, FSDPModule) for inner in module.modules() if inner is not module):
        raise EstimatorNotApplicable(
            f"{type(module).__name__} must be differentiated as a whole, but FSDP2 wraps modules "
            "inside it"
        )
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
        # Copies of buffers: what the module writes to them (statistics) must neither stay nor
        # invalidate a graph that has saved them.
        tensors = {path: buffer.clone() for path, buffer in module.named_buffers()}
        tensors |= _gathered_parameters(module, (*args, *kwargs.values()))
        for path, change in changes.items():
            parameter = tensors[path] if path in tensors else module.get_parameter(path).detach()
            tensors[path] = forward_ad.make_dual(parameter, change.to(parameter.dtype))
        by_path = {f"module.{path}": tensor for path, tensor in tensors.items()}
        result = functional_call(_WithoutHooks(module), by_path, args, dict(kwargs))
        pairs = [forward_ad.unpack_dual(output) for output in outputs_of(result)]
        output_changes = [
            torch.zeros_like(pair.primal) if pair.tangent is None else pair.tangent
            for pair in pairs
        ]
        return [pair.primal for pair in pairs], output_changes


def _gathered_parameters(module: nn.Module, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    """Whole parameters for the sharded ones, by path.

    They have the dtype of the inputs, which is that of FSDP2's mixed precision.
    """
    sharded = {
        path: p.detach()
        for path, p in module.named_parameters(remove_duplicate=False)
        if isinstance(p, DTensor)
    }
    dtype = next((tensor.dtype for tensor in floating_tensors(inputs)), None)
    return {path: full_tensor(p).to(dtype or p.dtype) for path, p in sharded.items()}
