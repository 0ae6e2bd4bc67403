"""J·ΔW by central differences, for modules with an operator that has no forward mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from flerm_core.measure.autodiff.module_replay import CallStart, gathered_parameters, replay
from flerm_core.measure.autodiff.structure import replace_instances
from flerm_core.measure.output_projection import floating_tensors


def difference_step(
    weight_squares: float, change_squares: float, numel: float, typical: float, epsilon: float
) -> float:
    """The step h for which the RMS of hΔW is ∛ε times the RMS of the weights.

    The errors of rounding (ε/h) and of curvature (h²) are then both small. 1 where ΔW is zero.

    weight_squares, change_squares: the sums of the squared weights and of the squared ΔW.
    numel: how many elements each of the two sums has.
    typical: the least mean square that is assumed for the weights. Fresh biases, for instance,
        are zero.
    epsilon: the rounding error ε of the dtype that the model computes in.
    """
    if not change_squares > 0.0:
        return 1.0
    size = math.sqrt(max(weight_squares / numel, typical) or 1.0)
    return float(epsilon ** (1 / 3) * size / math.sqrt(change_squares / numel))


def difference_along(
    module: nn.Module,
    changes: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    start: CallStart,
    outputs_of: Callable[[Any], list[Tensor]],
    *,
    widened: bool,
) -> list[Tensor]:
    """(y(W + hΔW) − y(W − hΔW)) / 2h of each output y, in float32 or wider.

    module, changes, args, kwargs, start, outputs_of: as in `jvp_along`.
    widened: whether to cast parameters, buffers and inputs in half precision to float32, and to
        turn autocast off. The cast is more accurate, but not every kernel takes float32.
    """
    device = next(iter(changes.values())).device.type
    with torch.no_grad(), torch.autocast(device, enabled=False) if widened else nullcontext():
        parameters = gathered_parameters(module, (args, kwargs))
        if widened:
            args, kwargs = replace_instances((args, dict(kwargs)), Tensor, _wide)
            parameters = _widened(parameters)
        inputs = floating_tensors((args, kwargs))
        step = _step(parameters, changes, _epsilon([*parameters.values(), *inputs]))
        sides: list[list[Tensor]] = []
        for factor in (step, -step):
            tensors = start.buffers_of(module)
            tensors = (_widened(tensors) if widened else tensors) | parameters
            moved: dict[int, Tensor] = {}
            for path, change in changes.items():
                if id(change) not in moved:
                    own = parameters[path]
                    moved[id(change)] = own.to(change.dtype).add(change, alpha=factor).to(own.dtype)
                tensors[path] = moved[id(change)]
            with start.generators():
                sides.append([_wide(y) for y in outputs_of(replay(module, tensors, args, kwargs))])
        return [(ahead - behind).div_(2.0 * step) for ahead, behind in zip(*sides, strict=True)]


def _step(parameters: Mapping[str, Tensor], changes: Mapping[str, Tensor], epsilon: float) -> float:
    moved = [parameters[path] for path in changes]
    everything = list(parameters.values())
    return difference_step(
        _sum_of_squares(moved),
        _sum_of_squares(changes.values()),
        sum(weight.numel() for weight in moved),
        _sum_of_squares(everything) / max(1, sum(weight.numel() for weight in everything)),
        epsilon,
    )


def _sum_of_squares(tensors: Iterable[Tensor]) -> float:
    return sum(each.float().square().sum(dtype=torch.float64).item() for each in tensors)


def _epsilon(tensors: Iterable[Tensor]) -> float:
    """The rounding error of the coarsest dtype in which a module computes."""
    dtypes = {each.dtype for each in tensors if each.is_floating_point()}
    for device in {each.device.type for each in tensors}:
        if torch.is_autocast_enabled(device):
            dtypes.add(torch.get_autocast_dtype(device))
    # Modules compute norms and softmax in float32 whatever their dtype.
    return max([torch.finfo(torch.float32).eps, *(torch.finfo(dtype).eps for dtype in dtypes)])


def _wide(tensor: Tensor) -> Tensor:
    is_half = tensor.is_floating_point() and torch.finfo(tensor.dtype).bits < 32
    return tensor.float() if is_half else tensor


def _widened(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {path: _wide(tensor) for path, tensor in tensors.items()}
