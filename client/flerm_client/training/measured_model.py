"""What holds the model, what its tensors are called, and which processes measure it together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from flerm_core.errors import InvalidInput, Unsupported
from flerm_core.measure.distributed import fsdp2
from flerm_core.measure.distributed.ranks import MeasurementRanks
from flerm_core.measure.distributed.sharding import Sharding, find_parts
from flerm_core.measure.measured_model import MeasuredModel, Output
from flerm_core.parameter_names import block_axes, canonical, depth_groups

_PIPELINES = "torch.distributed.pipelining."
_PIPELINE = "a pipeline stage does not compute the outputs and cannot be measured; use FSDP2 or tensor parallel"


def bare_model(model: nn.Module) -> nn.Module:
    """The module inside DDP and torch.compile: forwards through it neither reduce gradients nor broadcast buffers nor
    compile."""
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def find_ranks(model: nn.Module, group: Any) -> MeasurementRanks:
    """The ranks that measure `model` together: those its DDP wrapper uses, or those of the mesh on which its sharded parameters
    lie (FSDP2, tensor parallel), `group` where neither says it, else this process alone.

    Raises `Unsupported` for wrappers that are not measured, and for a process among others whose model nothing says is shared.
    """
    _refuse_wrappers(model)
    if any(isinstance(p, DTensor) for p in model.parameters()):
        return _mesh_ranks(model, group)
    ddp = _ddp_of(model)
    if ddp is not None:
        _refuse_ignored(ddp)
        group = ddp.process_group if group is None else group
    if (
        group is None
        and dist.is_available()
        and dist.is_initialized()
        and dist.get_world_size() > 1
    ):
        raise Unsupported(
            f"{dist.get_world_size()} ranks run, but the model is in no DistributedDataParallel: "
            "wrap it, or say which ranks hold replicas of it with process_group="
        )
    ranks = MeasurementRanks(group, alone=group is None)
    if ddp is not None:
        ranks.refuse = partial(_refuse_join, ddp)
    return ranks


def _refuse_wrappers(model: nn.Module) -> None:
    if type(model).__module__.startswith(_PIPELINES):
        raise Unsupported(_PIPELINE)
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"model is a {type(model).__name__}; allowed is a torch.nn.Module")
    kinds = {
        f"{kind.__module__}.{kind.__name__}"
        for module in model.modules()
        for kind in type(module).__mro__
    }
    if any(
        kind.startswith("torch.distributed.fsdp.fully_sharded_data_parallel.") for kind in kinds
    ):
        raise Unsupported(
            "FSDP1 (FullyShardedDataParallel) flattens parameters and cannot be measured; "
            "move to FSDP2: torch.distributed.fsdp.fully_shard(module) on each block and then the model"
        )
    if any(kind.startswith("deepspeed.") for kind in kinds):
        raise Unsupported(
            "a DeepSpeed engine partitions parameters and cannot be measured; use FSDP2 (fully_shard) or DDP"
        )
    if any(kind.startswith(_PIPELINES) for kind in kinds):
        raise Unsupported(_PIPELINE)
    if any(isinstance(module, DataParallel) for module in model.modules()):
        raise Unsupported(
            "DataParallel replicates the model in every forward and cannot be measured; use DistributedDataParallel"
        )


def _ddp_of(model: nn.Module) -> DistributedDataParallel | None:
    wrapper: Any = model
    while wrapper is not None:
        if isinstance(wrapper, DistributedDataParallel):
            return wrapper
        wrapper = getattr(wrapper, "_orig_mod", None) or getattr(wrapper, "module", None)
    return None


def _refuse_ignored(ddp: DistributedDataParallel) -> None:
    ignored = ddp.parameters_to_ignore & {
        name for name, p in ddp.module.named_parameters() if p.requires_grad
    }
    if ignored:
        raise Unsupported(
            f"DistributedDataParallel ignores {min(ignored)}, which may differ between ranks: such experts cannot be measured"
        )


def _refuse_join(ddp: DistributedDataParallel) -> None:
    if ddp._join_config.enable:
        raise Unsupported(
            "a step inside ddp.join() cannot be measured: ranks that ran out of batches do not take it"
        )


def _mesh_ranks(model: nn.Module, group: Any) -> MeasurementRanks:
    if _ddp_of(model) is not None:
        raise Unsupported(
            "DistributedDataParallel around sharded parameters (DTensor) cannot be measured; "
            "use HSDP: fully_shard over a mesh of (replicate, shard)"
        )
    mesh, data = _meshes(model)
    coordinate = mesh.get_coordinate()
    assert coordinate is not None, "a rank outside the mesh holds no part of the model"
    ranks = set(mesh.mesh.flatten().tolist())
    replicas = 1
    if group is not None and data:
        if set(dist.get_process_group_ranks(group)) != ranks:
            raise InvalidInput(
                f"process_group: the model is sharded over ranks {sorted(ranks)}, it must be these or None"
            )
    elif group is not None:  # tensor parallel, replicated by the user
        replicas = dist.get_world_size(group)
    if len(ranks) * replicas != dist.get_world_size() and group is None:
        raise Unsupported(
            f"the model's parameters lie on {len(ranks)} of {dist.get_world_size()} ranks: pipeline and expert parallel cannot "
            "be measured; where the others hold replicas, say which with process_group="
        )
    dims = range(mesh.ndim)
    everyone = (
        [None]
        if len(ranks) * replicas == dist.get_world_size()
        else [mesh.get_group(dim) for dim in dims]
    )
    if replicas > 1 and everyone != [None]:
        everyone.append(group)
    rank = 0 if replicas == 1 else dist.get_rank(group)
    for dim in data:
        rank = rank * mesh.size(dim) + coordinate[dim]
    return MeasurementRanks(
        groups=everyone,
        split=[mesh.get_group(dim) for dim in dims if dim not in data],
        rank=rank,
        locked=True,
    )


def _meshes(model: nn.Module) -> tuple[DeviceMesh, list[int]]:
    """The mesh on which all sharded parameters lie, and its dimensions along which ranks have batches of their own."""
    meshes = [p.device_mesh for p in model.parameters() if isinstance(p, DTensor)]
    widest = max(meshes, key=lambda mesh: mesh.ndim)
    names = widest.mesh_dim_names or ()
    data = fsdp2.data_meshes(model)
    odd = next(
        (
            mesh
            for mesh in meshes
            if mesh != widest and not set(mesh.mesh_dim_names or ("?",)) <= set(names)
        ),
        None,
    )
    if len(data) > 1 or odd is not None or any("expert" in name or name == "ep" for name in names):
        raise Unsupported(
            "the model's parameters lie on different meshes of ranks: expert parallel cannot be measured; use one mesh for all"
        )
    if not data:
        return widest, []
    if data[0] == widest:
        return widest, list(range(widest.ndim))
    own = set(data[0].mesh_dim_names or ())
    found = [dim for dim, name in enumerate(names) if name in own]
    if len(found) != data[0].ndim:
        raise Unsupported(
            f"FSDP2's mesh {data[0]} is no part of the parameters' mesh {widest}: use one mesh for all"
        )
    return widest, found


def find_sharding(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], ranks: MeasurementRanks
) -> Sharding | None:
    """How the ranks share `parameters`; None where each holds them whole."""
    if not any(isinstance(p, DTensor) for p in model.parameters()):
        return None
    mesh, data = _meshes(model)
    coordinate: Sequence[int] = mesh.get_coordinate() or ()
    names = mesh.mesh_dim_names or ("",) * mesh.ndim
    averaged = fsdp2.managed(model)
    return Sharding(
        parts=find_parts(parameters),
        reduced={name: averaged[id(p)] for name, p in parameters.items() if id(p) in averaged},
        data_axes=frozenset(names[dim] for dim in data if names[dim]),
        split={
            names[dim] or str(dim): coordinate[dim] for dim in range(mesh.ndim) if dim not in data
        },
        total=ranks.sum,
        total_split=ranks.sum_split,
        same=ranks.same,
        device=mesh.device_type,
    )


def make_measured_model(
    model: nn.Module,
    optimizers: Iterable[Optimizer],
    output: Output | None,
    blocks: str | Iterable[str] | None,
    ranks: MeasurementRanks,
) -> MeasuredModel:
    """The model's tensors that the optimisers step, by canonical name, the roles they play, and how `ranks` share them.

    Raises `InvalidInput` when there are none, or when two names fall together; `Unsupported` where ranks hold different ones.
    """
    stepped = {id(p) for each in optimizers for group in each.param_groups for p in group["params"]}
    bare = bare_model(model)
    fsdp2.reshard(bare)
    parameters: dict[str, nn.Parameter] = {}
    for name, parameter in bare.named_parameters():
        if id(parameter) in stepped:
            if canonical(name) in parameters:
                raise InvalidInput(
                    f"two parameters are called {canonical(name)!r} once wrappers' prefixes are taken off"
                )
            parameters[canonical(name)] = parameter
    if not parameters:
        raise InvalidInput(
            "the optimizer steps no parameter of the model: was it built from another model?"
        )
    if unreal := next((name for name, p in parameters.items() if p.is_complex()), None):
        raise Unsupported(
            f"{unreal} is complex, which has no FSLR yet; hold it as its real and imaginary parts (view_as_real)"
        )
    names, shapes = list(parameters), [tuple(p.shape) for p in parameters.values()]
    if isinstance(blocks, str):
        blocks = (blocks,)
    axes = tuple(blocks) if blocks is not None else block_axes(names, shapes)
    roles = {role: tuple(members) for role, members in depth_groups(names, axes).items()}
    subject = MeasuredModel(
        bare, parameters, output or default_output, roles, find_sharding(bare, parameters, ranks)
    )
    if not ranks.same((names, shapes), subject.device):
        raise Unsupported(
            "the ranks hold different parameters: replicas hold the same ones, and pipeline parallel cannot be measured"
        )
    if subject.sharding is None:
        _refuse_different(parameters, ranks, subject.device)
    return replace(subject, output=on_device(subject.output, subject.device))


def _refuse_different(
    parameters: Mapping[str, nn.Parameter], ranks: MeasurementRanks, device: torch.device
) -> None:
    """Raises `Unsupported` where what should be replicas have other values: each rank its own experts, say. One collective."""
    if ranks.alone:
        return
    with torch.no_grad():
        sums = [
            torch.stack([p.sum(dtype=torch.float64), p.abs().sum(dtype=torch.float64)])
            for p in parameters.values()
        ]
    own = torch.stack([each.to(device) for each in sums])
    count, *found = ranks.sum(
        torch.cat([own.new_ones(1), own.flatten(), own.square().flatten()])
    ).tolist()
    total, squared = (
        torch.tensor(half, dtype=torch.float64).reshape(-1, 2)
        for half in (found[: own.numel()], found[own.numel() :])
    )
    off = ((count * squared - total.square()).abs() > 1e-10 * total[:, 1:].square()).any(1).tolist()
    if any(off):
        name = next(name for name, flag in zip(parameters, off, strict=True) if flag)
        raise Unsupported(
            f"{name} has other values on other ranks: replicas hold the same ones, and expert parallel cannot be measured"
        )


def default_output(model: nn.Module, batch: Any) -> Any:
    """`model(batch)`, or `model(**batch)` for a mapping."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple | list):
        raise InvalidInput(
            f"a probe batch is a {type(batch).__name__} of {len(batch)}: say how the model is called, "
            "for instance output=lambda model, batch: model(batch[0])"
        )
    return model(batch)


def on_device(
    function: Callable[[nn.Module, Any], Any], device: torch.device
) -> Callable[[nn.Module, Any], Any]:
    """`function` of a model and a batch, for batches that may be elsewhere."""

    def there(model: nn.Module, batch: Any) -> Any:
        return function(model, to_device(batch, device))

    return there


def to_device(batch: Any, device: torch.device) -> Any:
    """`batch` with every tensor in its tuples, lists and mappings on `device`."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return type(batch)({key: to_device(value, device) for key, value in batch.items()})  # type: ignore[call-arg]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(item, device) for item in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(to_device(item, device) for item in batch)
    return batch
