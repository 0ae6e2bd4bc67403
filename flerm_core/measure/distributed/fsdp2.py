"""What FSDP2 (`fully_shard`) does to gradients, and how its state is restored.

This is the only file that uses FSDP2's private attributes: its public interface has setters, but
nothing that tells what is set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_common import TrainingState

from flerm_core.errors import Unsupported

# The attributes of a parameter group that decide its reduction, with the values that give the mean.
_MEAN_REDUCTION = {
    "reduce_grads": True,
    "all_reduce_grads": True,
    "gradient_divide_factor": None,
    "_partial_reduce_output": None,
}


def sharded_modules(model: nn.Module) -> list[FSDPModule]:
    """The modules of `model` on which `fully_shard` was called."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _param_groups(model: nn.Module) -> list[Any]:
    found: dict[int, Any] = {}
    for module in sharded_modules(model):
        state = module._get_fsdp_state()
        groups = getattr(state, "_fsdp_param_groups", None)
        if groups is None:  # before torch 2.12 a module had at most one
            groups = [state._fsdp_param_group] if state._fsdp_param_group is not None else []
        found |= {id(group): group for group in groups}
    return list(found.values())


def all_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Every parameter of `model`, and the sharded ones that FSDP2 has replaced by gathered ones."""
    found: dict[int, nn.Parameter] = {id(p): p for p in model.parameters()}
    for group in _param_groups(model):
        found |= {id(each.sharded_param): each.sharded_param for each in group.fsdp_params}
    return list(found.values())


def reshard(model: nn.Module) -> None:
    """Puts the sharded parameters back wherever a forward left gathered ones (the root does)."""
    for module in sharded_modules(model):
        module.reshard()


def data_meshes(model: nn.Module) -> list[DeviceMesh]:
    """The different meshes over which FSDP2 shards and replicates.

    Ranks along a mesh have batches of their own.
    """
    found: list[DeviceMesh] = []
    for group in _param_groups(model):
        if all(group.mesh_info.mesh != mesh for mesh in found):
            found.append(group.mesh_info.mesh)
    return found


def averaging_ranks(model: nn.Module) -> dict[int, float]:
    """id of each parameter of FSDP2 to the number of ranks that `mean_reduction` averages over.

    Raises `Unsupported` where the user set a reduction of their own: its factor is unknown.
    """
    found: dict[int, float] = {}
    for group in _param_groups(model):
        if group._all_reduce_hook is not None:
            raise Unsupported(
                "a hook set by set_all_reduce_hook reduces gradients in a way that cannot be "
                "known; use HSDP: fully_shard(module, mesh=...) over a mesh of (replicate, shard)"
            )
        size = float(group.mesh_info.mesh.size())
        found |= {id(each.sharded_param): size for each in group.fsdp_params}
    return found


def reset_after_error(model: nn.Module) -> None:
    """Ends a forward or backward that raised, so that the next forward starts anew."""
    for module in sharded_modules(model):
        state = module._get_fsdp_state()
        if getattr(state, "_is_root", False) and hasattr(state, "_reset_iter_state"):
            state._reset_iter_state()
        else:  # before torch 2.12 no method does this
            state._training_state = TrainingState.IDLE
            state._state_ctx.iter_forward_root = None
            state._state_ctx.post_backward_final_callback_queued = False
    for group in _param_groups(model):
        group._training_state = TrainingState.IDLE
    reshard(model)


@contextmanager
def mean_reduction(model: nn.Module) -> Iterator[None]:
    """Inside, every backward reduces gradients by their mean, whatever the user has set.

    The user's settings (gradient accumulation, a divide factor) and gradients that wait for a
    reduction are restored afterwards. Parameters are sharded before and after.
    """
    modules = sharded_modules(model)
    if not modules:
        yield
        return
    groups = _param_groups(model)
    reshard(model)
    settings = [
        {name: getattr(group, name) for name in _MEAN_REDUCTION if hasattr(group, name)}
        for group in groups
    ]
    contexts = [module._get_fsdp_state()._state_ctx for module in modules]
    is_last_backward = [context.is_last_backward for context in contexts]
    restore_unreduced = [_stash_unreduced(each) for group in groups for each in group.fsdp_params]
    for group, names in zip(groups, settings, strict=True):
        for name in names:
            setattr(group, name, _MEAN_REDUCTION[name])
    for context in contexts:
        context.is_last_backward = True
    try:
        yield
    finally:
        reshard(model)
        for group, values in zip(groups, settings, strict=True):
            for name, value in values.items():
                setattr(group, name, value)
        for context, last in zip(contexts, is_last_backward, strict=True):
            context.is_last_backward = last
        for restore in restore_unreduced:
            restore()


def _stash_unreduced(parameter: Any) -> Callable[[], None]:
    """Sets aside a parameter's gradients that were not yet reduced over ranks.

    Such gradients exist where a training accumulates gradients without synchronisation. Returns a
    function that puts them back.
    """
    accumulated = parameter.unsharded_accumulated_grad
    parameter.unsharded_accumulated_grad = None
    unsharded = getattr(parameter, "_unsharded_param", None)
    gradient = None if unsharded is None else unsharded.grad
    if unsharded is not None:
        unsharded.grad = None

    def restore() -> None:
        parameter.unsharded_accumulated_grad = accumulated
        if unsharded is not None:
            unsharded.grad = gradient

    return restore
