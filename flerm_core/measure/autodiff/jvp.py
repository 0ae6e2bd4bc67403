"""J·ΔW by forward-mode differentiation: how a module's outputs move with its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from flerm_core.measure.autodiff.module_replay import CallStart, gathered_parameters, replay
from flerm_core.measure.autodiff.structure import replace_instances


def jvp_along(
    module: nn.Module,
    changes: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    start: CallStart,
    outputs_of: Callable[[Any], list[Tensor]],
) -> list[Tensor]:
    """J·ΔW of each output of `module(*args, **kwargs)` when all `changes` act together.

    changes: ΔW by the parameter's path in `module`; each is cast to its parameter's dtype. A tied
        parameter moves at the paths that are given.
    start: how generators and buffers were when the call began.
    outputs_of: the output tensors in what the module returns.

    Attention runs by plain matrix products, because its fused kernels have no forward mode. Where
    another operator has no forward mode, torch's own error is raised.
    """
    with (
        # Measurements run under no_grad. With gradients enabled here (all tensors are detached),
        # `_ConstantsUnderNoGrad` sees only the no_grad blocks of the module itself.
        torch.enable_grad(),
        _ConstantsUnderNoGrad(),
        start.generators(),
        sdpa_kernel(SDPBackend.MATH),
        forward_ad.dual_level(),
    ):
        tensors = start.buffers_of(module) | gathered_parameters(module, (args, kwargs))
        duals: dict[int, Tensor] = {}
        for path, change in changes.items():
            if id(change) not in duals:
                own = tensors[path]
                duals[id(change)] = forward_ad.make_dual(own, change.to(own.dtype))
            tensors[path] = duals[id(change)]
        result = replay(module, tensors, args, kwargs)
        pairs = [forward_ad.unpack_dual(output) for output in outputs_of(result)]
        return [
            torch.zeros_like(pair.primal) if pair.tangent is None else pair.tangent
            for pair in pairs
        ]


class _ConstantsUnderNoGrad(TorchFunctionMode):
    """While active, results computed under no_grad get no tangent, since training takes them as
    constants.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.is_grad_enabled():
            return result
        return replace_instances(result, Tensor, lambda each: forward_ad.unpack_dual(each).primal)
