"""What holds the model, what its tensors are called, and which processes measure it together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from flerm_core.errors import InvalidInput, Unsupported
from flerm_core.measure.estimator import Output, Subject
from flerm_core.measure.ranks import Ranks
from flerm_core.naming import block_axes, canonical, role_names


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


def find_ranks(model: nn.Module, group: Any) -> Ranks:
    """The ranks that hold replicas of `model`: `group` if given, else the one its DDP wrapper uses, else this process alone.

    Raises `Unsupported` for wrappers that are not measured, and for a process among others whose model nothing says is shared.
    """
    kinds = {f"{kind.__module__}.{kind.__name__}" for module in model.modules() for kind in type(module).__mro__}
    if any(kind.startswith("torch.distributed.fsdp.fully_sharded_data_parallel.") for kind in kinds):
        raise Unsupported(
            "FSDP1 (FullyShardedDataParallel) flattens parameters and cannot be measured; "
            "move to FSDP2: torch.distributed.fsdp.fully_shard(module) on each block and then the model"
        )
    if any(kind.startswith("deepspeed.") for kind in kinds):
        raise Unsupported("a DeepSpeed engine partitions parameters and cannot be measured; use DDP")
    if any(isinstance(module, DataParallel) for module in model.modules()):
        raise Unsupported(
            "DataParallel replicates the model in every forward and cannot be measured; use DistributedDataParallel"
        )
    sharded = next((name for name, p in model.named_parameters() if isinstance(p, DTensor)), None)
    if sharded is not None:
        raise Unsupported(f"{sharded!r} is a DTensor (FSDP2 or tensor parallel): sharded parameters are not measured; use DDP")
    wrapper: nn.Module | None = model
    while wrapper is not None and group is None:
        if isinstance(wrapper, DistributedDataParallel):
            group = wrapper.process_group
        wrapper = getattr(wrapper, "_orig_mod", None) or getattr(wrapper, "module", None)
    if group is None and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise Unsupported(
            f"{dist.get_world_size()} ranks run, but the model is in no DistributedDataParallel: "
            "wrap it, or say which ranks hold replicas of it with process_group="
        )
    return Ranks(group, alone=group is None)


def make_subject(
    model: nn.Module,
    optimizers: Iterable[Optimizer],
    output: Output | None,
    blocks: str | Iterable[str] | None,
) -> Subject:
    """The model's tensors that the optimisers step, by canonical name, and the roles they play.

    Raises `InvalidInput` when there are none, or when two names fall together.
    """
    stepped = {id(p) for each in optimizers for group in each.param_groups for p in group["params"]}
    bare = bare_model(model)
    parameters: dict[str, nn.Parameter] = {}
    for name, parameter in bare.named_parameters():
        if id(parameter) in stepped:
            if canonical(name) in parameters:
                raise InvalidInput(f"two parameters are called {canonical(name)!r} once wrappers' prefixes are taken off")
            parameters[canonical(name)] = parameter
    if not parameters:
        raise InvalidInput("the optimizer steps no parameter of the model: was it built from another model?")
    names, shapes = list(parameters), [tuple(p.shape) for p in parameters.values()]
    if isinstance(blocks, str):
        blocks = (blocks,)
    axes = tuple(blocks) if blocks is not None else block_axes(names, shapes)
    roles = {role: tuple(members) for role, members in role_names(names, axes).items()}
    return Subject(bare, parameters, _on_device(output or default_output, next(iter(parameters.values())).device), roles)


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


def _on_device(output: Output, device: torch.device) -> Callable[[nn.Module, Any], Any]:
    def outputs(model: nn.Module, batch: Any) -> Any:
        return output(model, moved(batch, device))

    return outputs


def moved(batch: Any, device: torch.device) -> Any:
    """`batch` with every tensor in its tuples, lists and mappings on `device`."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return type(batch)({key: moved(value, device) for key, value in batch.items()})  # type: ignore[call-arg]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved(item, device) for item in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(moved(item, device) for item in batch)
    return batch
