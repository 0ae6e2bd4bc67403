"""Ways to hold a model that cannot be measured; every rank reports the error of each."""

import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

import torch
from distributed import sharded
from distributed.rank import begin, report
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe, SplitPoint, pipeline
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from flerm_client import FLeRM
from flerm_core.errors import FlermError

begin()
size = dist.get_world_size()
warnings.simplefilter("ignore")


def refused(model: Any, *, kind: Any = torch.optim.SGD, parts: Any = None, **options: Any) -> str:
    try:
        optimizer = kind((parts or model).parameters(), lr=1e-2)
        begin_run = FLeRM.match if "targets" in options else FLeRM.record
        begin_run(model, optimizer, **{"probe": [sharded.batch_of(0)], "family": "f", **options})
        model(sharded.batch_of(0)).to_local().sum().backward() if options.get("dtensor") else model(
            sharded.batch_of(0)
        ).sum().backward()
        optimizer.step()
    except FlermError as error:
        return f"{type(error).__name__}: {error}"
    return "measured"


def experts() -> Any:
    model = sharded.build()
    fully_shard(model.blocks[0], mesh=sharded.world(size, names=("experts",)))
    return fully_shard(model, mesh=sharded.world(size, names=("dp",)))


def own_experts() -> Any:
    """Each rank its own expert, in plain tensors of the same name and shape."""
    model = sharded.build()
    torch.nn.init.normal_(model.blocks[1].up.weight, generator=torch.Generator().manual_seed(rank))
    return model


def expert_mesh() -> Any:
    """The experts of a layer along a dimension of their own; all else on every rank."""
    model = sharded.build()
    along = sharded.world(size, names=("ep",))
    model.blocks[1].up.weight = nn.Parameter(
        distribute_tensor(model.blocks[1].up.weight.data, along, [Shard(0)])
    )
    return model


def hooked() -> Any:
    model = fully_shard(sharded.build(), mesh=sharded.world(size, names=("dp",)))
    model.set_all_reduce_hook(lambda gradient: None)
    return model


def ignoring() -> Any:
    model = sharded.build()
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
        model, ["blocks.0.up.weight"]
    )
    return DistributedDataParallel(model)


def stages() -> dict[str, str]:
    """Torch's pipeline: a model that it cut, a stage that a user made, and a schedule."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    traced = pipeline(model, mb_args=(torch.zeros(2, 4),), split_spec={"1": SplitPoint.BEGINNING})
    own = model[rank]
    stage = PipelineStage(own, rank, size, torch.device("cpu"))
    half: Any = (
        nn.Sequential(own) if rank == 0 else own
    )  # called otherwise, as the layers of two stages are
    return {
        "pipe": refused(traced),
        "stage": refused(stage, parts=own),
        "schedule": refused(ScheduleGPipe(stage, 2), parts=own),
        "stage's module": refused(own),
        "stages as replicas": refused(half, process_group=dist.group.WORLD),
    }


rank = dist.get_rank()
half = dist.new_group([0])
results = {
    "plain": refused(sharded.build()),
    "fsdp1": refused(
        FullyShardedDataParallel(
            sharded.build(), device_id=torch.device("cpu"), use_orig_params=True
        )
    ),
    "zero": refused(
        DistributedDataParallel(sharded.build()),
        kind=lambda p, lr: ZeroRedundancyOptimizer(p, torch.optim.SGD, lr=lr),
    ),
    "ignored": refused(ignoring()),
    **stages(),
    "experts": refused(experts()),
    "own experts": refused(own_experts(), process_group=dist.group.WORLD),
    "expert mesh": refused(expert_mesh()),
    "hooked": refused(hooked()),
    "slices": refused(
        parallelize_module(
            sharded.build(sharded.ParallelDecoder),
            sharded.world(size, names=("tp",)),
            {"readout": ColwiseParallel()},
        )
    ),
    "empty": refused(
        sharded.tensor_parallel(
            sharded.build(sharded.ParallelDecoder), sharded.world(size, names=("tp",))
        ),
        probe=[sharded.batch_of(0)[:0]],
        targets={
            name: 1.0 for name, _ in sharded.build(sharded.ParallelDecoder).named_parameters()
        },
    ),
    "group": refused(
        fully_shard(sharded.build(), mesh=sharded.world(size, names=("dp",))), process_group=half
    )
    if dist.get_rank() == 0
    else "",
}
report(results)
dist.destroy_process_group()
