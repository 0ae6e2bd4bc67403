"""Which processes share a model, and how; what cannot be measured is refused by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DataParallel, DistributedDataParallel

from flerm_core.errors import InvalidInput, Unsupported
from flerm_core.measure.distributed import fsdp2
from flerm_core.measure.distributed.ranks import MeasurementRanks
from flerm_core.measure.distributed.sharding import Sharding, local_shards

_INNER = ("_orig_mod", "_forward_module", "module")
_PIPELINES = "torch.distributed.pipelining."
_PIPELINE = (
    "a pipeline stage does not compute the outputs and cannot be measured; "
    "use FSDP2 or tensor parallel"
)


def find_ranks(model: nn.Module, group: Any) -> MeasurementRanks:
    """The ranks that measure `model` together.

    These are the ranks of its DDP wrapper, or of the mesh on which its sharded parameters lie
    (FSDP2, tensor parallel). Where the model shows neither, they are those of the process group
    `group`; without one, this process alone.

    Raises `Unsupported` for a wrapper that cannot be measured, and where several processes run
    but nothing says that they share the model.
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
    ranks = MeasurementRanks(group, single_process=group is None)
    if ddp is not None:
        ranks.check_supported = partial(_refuse_join, ddp)
    return ranks


def _refuse_wrappers(model: nn.Module) -> None:
    """Raises `Unsupported` for FSDP1, DeepSpeed, pipeline stages and DataParallel."""
    if type(model).__module__.startswith(_PIPELINES):
        raise Unsupported(_PIPELINE)
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"model is a {type(model).__name__}; allowed is a torch.nn.Module")
    classes = {
        f"{each.__module__}.{each.__name__}"
        for module in model.modules()
        for each in type(module).__mro__
    }

    def has(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in classes)

    if has("torch.distributed.fsdp.fully_sharded_data_parallel."):
        raise Unsupported(
            "FSDP1 (FullyShardedDataParallel) flattens parameters and cannot be measured; "
            "move to FSDP2: torch.distributed.fsdp.fully_shard(module) on each block and then "
            "the model"
        )
    if has("deepspeed."):
        raise Unsupported(
            "a DeepSpeed engine partitions parameters and cannot be measured; "
            "use FSDP2 (fully_shard) or DDP"
        )
    if has(_PIPELINES):
        raise Unsupported(_PIPELINE)
    if any(isinstance(module, DataParallel) for module in model.modules()):
        raise Unsupported(
            "DataParallel replicates the model in every forward and cannot be measured; "
            "use DistributedDataParallel"
        )


def _ddp_of(model: nn.Module) -> DistributedDataParallel | None:
    """The DDP wrapper of `model`, looked for through `torch.compile` and other wrappers."""
    wrapper: Any = model
    while wrapper is not None:
        if isinstance(wrapper, DistributedDataParallel):
            return wrapper
        # Fabric's `module` is the module inside DDP; its `_forward_module` is DDP.
        inner = (getattr(wrapper, name, None) for name in _INNER)
        wrapper = next((each for each in inner if isinstance(each, nn.Module)), None)
    return None


def _refuse_ignored(ddp: DistributedDataParallel) -> None:
    """Raises `Unsupported` where DDP does not keep a trained parameter equal on all ranks."""
    ignored = ddp.parameters_to_ignore & {
        name for name, p in ddp.module.named_parameters() if p.requires_grad
    }
    if ignored:
        raise Unsupported(
            f"DistributedDataParallel ignores {min(ignored)}, which may differ between ranks: "
            "such experts cannot be measured"
        )


def _refuse_join(ddp: DistributedDataParallel) -> None:
    """Raises `Unsupported` inside `ddp.join()`."""
    if ddp._join_config.enable:
        raise Unsupported(
            "a step inside ddp.join() cannot be measured: "
            "ranks that ran out of batches do not take it"
        )


def _mesh_ranks(model: nn.Module, group: Any) -> MeasurementRanks:
    """The ranks of the mesh of `model`'s sharded parameters, and of its replicas in `group`."""
    if _ddp_of(model) is not None:
        raise Unsupported(
            "DistributedDataParallel around sharded parameters (DTensor) cannot be measured; "
            "use HSDP: fully_shard over a mesh of (replicate, shard)"
        )
    mesh, data_dims = _meshes(model)
    coordinate = mesh.get_coordinate()
    assert coordinate is not None, "a rank outside the mesh holds no part of the model"
    replicas = _replicas(set(mesh.mesh.flatten().tolist()), group, bool(data_dims))
    dims = range(mesh.ndim)
    is_whole_world = mesh.size() * replicas == dist.get_world_size()
    everyone = [None] if is_whole_world else [mesh.get_group(dim) for dim in dims]
    if replicas > 1 and not is_whole_world:
        everyone.append(group)
    data_rank = 0 if replicas == 1 else dist.get_rank(group)
    for dim in data_dims:
        data_rank = data_rank * mesh.size(dim) + coordinate[dim]
    return MeasurementRanks(
        groups=everyone,
        model_parallel_groups=[mesh.get_group(dim) for dim in dims if dim not in data_dims],
        data_parallel_rank=data_rank,
        lockstep=True,
    )


def _replicas(mesh_ranks: set[int], group: Any, has_data_dims: bool) -> int:
    """How many copies of the sharded model `group` holds: more than one for tensor parallel only.

    Raises `InvalidInput` for a group that is not the mesh, `Unsupported` for ranks off the mesh.
    """
    if group is not None and not has_data_dims:  # tensor parallel, replicated by the user
        return dist.get_world_size(group)
    if group is not None and set(dist.get_process_group_ranks(group)) != mesh_ranks:
        raise InvalidInput(
            f"process_group: the model is sharded over ranks {sorted(mesh_ranks)}, "
            "it must be these or None"
        )
    if group is None and len(mesh_ranks) != dist.get_world_size():
        raise Unsupported(
            f"the model's parameters lie on {len(mesh_ranks)} of {dist.get_world_size()} ranks: "
            "pipeline and expert parallel cannot be measured; "
            "where the others hold replicas, say which with process_group="
        )
    return 1


def _meshes(model: nn.Module) -> tuple[DeviceMesh, list[int]]:
    """The mesh on which all sharded parameters lie, and its data-parallel dimensions.

    Along a data-parallel dimension, ranks have batches of their own. Raises `Unsupported` for
    parameters on several meshes.
    """
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
            "the model's parameters lie on different meshes of ranks: "
            "expert parallel cannot be measured; use one mesh for all"
        )
    if not data:
        return widest, []
    if data[0] == widest:
        return widest, list(range(widest.ndim))
    own = set(data[0].mesh_dim_names or ())
    found = [dim for dim, name in enumerate(names) if name in own]
    if len(found) != data[0].ndim:
        raise Unsupported(
            f"FSDP2's mesh {data[0]} is no part of the parameters' mesh {widest}: "
            "use one mesh for all"
        )
    return widest, found


def find_sharding(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], ranks: MeasurementRanks
) -> Sharding | None:
    """How the ranks share `parameters`; None where each rank holds all of them whole."""
    if not any(isinstance(p, DTensor) for p in model.parameters()):
        return None
    mesh, data = _meshes(model)
    coordinate: Sequence[int] = mesh.get_coordinate() or ()
    names = mesh.mesh_dim_names or ("",) * mesh.ndim
    averaged = fsdp2.averaging_ranks(model)
    return Sharding(
        shards=local_shards(parameters),
        averaged_over={
            name: averaged[id(p)] for name, p in parameters.items() if id(p) in averaged
        },
        data_axes=frozenset(names[dim] for dim in data if names[dim]),
        model_parallel_coordinates={
            names[dim] or str(dim): coordinate[dim] for dim in range(mesh.ndim) if dim not in data
        },
        sum_world=ranks.sum,
        sum_model_parallel=ranks.sum_model_parallel,
        all_equal=ranks.all_equal,
        device=mesh.device_type,
    )


def refuse_different_replicas(
    parameters: Mapping[str, nn.Parameter], ranks: MeasurementRanks, device: torch.device
) -> None:
    """Raises `Unsupported` where ranks that should hold replicas hold other values.

    One collective: Σx and Σx² over ranks of two checksums for each tensor. Equal values have
    n·Σx² = (Σx)². Each rank with its own experts, for instance, has not.
    """
    if ranks.single_process:
        return
    with torch.no_grad():
        checksums = [
            torch.stack([p.sum(dtype=torch.float64), p.abs().sum(dtype=torch.float64)])
            for p in parameters.values()
        ]
    own = torch.stack([each.to(device) for each in checksums])
    content = torch.cat([own.new_ones(1), own.flatten(), own.square().flatten()])
    count, *sums = ranks.sum(content).tolist()
    total, squared = torch.tensor(sums, dtype=torch.float64).reshape(2, -1, 2)
    variance = (count * squared - total.square()).abs()
    differs = (variance > 1e-10 * total[:, 1:].square()).any(1).tolist()
    if any(differs):
        name = next(name for name, flag in zip(parameters, differs, strict=True) if flag)
        raise Unsupported(
            f"{name} has other values on other ranks: replicas hold the same ones, "
            "and expert parallel cannot be measured"
        )
