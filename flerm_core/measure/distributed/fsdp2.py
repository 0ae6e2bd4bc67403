"""What must be known of torch's FSDP2 (`fully_shard`) beyond its DTensors: whose gradients it reduces over which ranks, and
how it is put back as it was.

The only place that looks behind FSDP2's public face: it has no question for "what is set now?", only setters.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_common import TrainingState

from flerm_core.errors import Unsupported

_GROUP_FLAGS = {
    "reduce_grads": True,
    "all_reduce_grads": True,
    "gradient_divide_factor": None,
    "_partial_reduce_output": None,
}


def sharded_modules(model: nn.Module) -> list[FSDPModule]:
    """The modules of `model` that `fully_shard` was called on."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _groups(model: nn.Module) -> list[Any]:
    found: dict[int, Any] = {}
    for module in sharded_modules(model):
        state = module._get_fsdp_state()
        groups = getattr(state, "_fsdp_param_groups", None)
        if groups is None:  # before torch 2.12 a module had at most one
            groups = [state._fsdp_param_group] if state._fsdp_param_group is not None else []
        found |= {id(group): group for group in groups}
    return list(found.values())


def all_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Every parameter of `model`, the sharded ones also where whole ones stand in for them at the moment."""
    found: dict[int, nn.Parameter] = {id(p): p for p in model.parameters()}
    found |= {
        id(each.sharded_param): each.sharded_param
        for group in _groups(model)
        for each in group.fsdp_params
    }
    return list(found.values())


def reshard(model: nn.Module) -> None:
    """Registers the sharded parameters wherever a forward left whole ones (the root does)."""
    for module in sharded_modules(model):
        module.reshard()


def data_meshes(model: nn.Module) -> list[DeviceMesh]:
    """The different meshes over which FSDP2 shards and replicates, each the ranks that have batches of their own."""
    found: list[DeviceMesh] = []
    for group in _groups(model):
        if all(group.mesh_info.mesh != mesh for mesh in found):
            found.append(group.mesh_info.mesh)
    return found


def managed(model: nn.Module) -> dict[int, float]:
    """id of each parameter that FSDP2 manages, to the number of ranks over which its gradient arrives averaged (by
    `own_reduction`).

    Raises `Unsupported` for a reduction of the user's own, whose factor nobody knows.
    """
    found: dict[int, float] = {}
    for group in _groups(model):
        if group._all_reduce_hook is not None:
            raise Unsupported(
                "a hook set by set_all_reduce_hook reduces gradients in a way that cannot be known; "
                "use HSDP: fully_shard(module, mesh=...) over a mesh of (replicate, shard)"
            )
        found |= {
            id(each.sharded_param): float(group.mesh_info.mesh.size()) for each in group.fsdp_params
        }
    return found


def recover(model: nn.Module) -> None:
    """After an exception in a forward or backward: the next one begins from the beginning."""
    states = [module._get_fsdp_state() for module in sharded_modules(model)]
    for state in states:
        if getattr(state, "_is_root", False) and hasattr(state, "_reset_iter_state"):
            state._reset_iter_state()
        else:  # before torch 2.12 there is nothing that does this
            state._training_state = TrainingState.IDLE
            state._state_ctx.iter_forward_root = None
            state._state_ctx.post_backward_final_callback_queued = False
    for group in _groups(model):
        group._training_state = TrainingState.IDLE
    reshard(model)


@contextmanager
def own_reduction(model: nn.Module) -> Iterator[None]:
    """Inside, every backward reduces gradients by their mean, whatever the user has set (gradient accumulation, a divide factor
    of his own), and nothing of his that waits for a reduction is touched. Before and after, parameters are sharded."""
    modules = sharded_modules(model)
    if not modules:
        yield
        return
    groups = _groups(model)
    reshard(model)
    before = [
        {flag: getattr(group, flag) for flag in _GROUP_FLAGS if hasattr(group, flag)}
        for group in groups
    ]
    contexts = [module._get_fsdp_state()._state_ctx for module in modules]
    last = [context.is_last_backward for context in contexts]
    waiting = [_set_aside(each) for group in groups for each in group.fsdp_params]
    for group, flags in zip(groups, before, strict=True):
        for flag in flags:
            setattr(group, flag, _GROUP_FLAGS[flag])
    for context in contexts:
        context.is_last_backward = True
    try:
        yield
    finally:
        reshard(model)
        for group, flags in zip(groups, before, strict=True):
            for flag, value in flags.items():
                setattr(group, flag, value)
        for context, value in zip(contexts, last, strict=True):
            context.is_last_backward = value
        for put_back in waiting:
            put_back()


def _set_aside(parameter: Any) -> Any:
    """Unreduced gradients of one parameter (accumulation without synchronisation); returns what puts them back."""
    accumulated = parameter.unsharded_accumulated_grad
    parameter.unsharded_accumulated_grad = None
    unsharded = getattr(parameter, "_unsharded_param", None)
    gradient = None if unsharded is None else unsharded.grad
    if unsharded is not None:
        unsharded.grad = None

    def put_back() -> None:
        parameter.unsharded_accumulated_grad = accumulated
        if unsharded is not None:
            unsharded.grad = gradient

    return put_back
