"""The time of a measured step over that of a plain one, on one process and on 1, 2 and 4 ranks of
DDP and FSDP2.

    python benchmarks/sharding_cost.py

On each set of ranks two runs take their steps in turn: a plain one, and one that measures at every
step (one draw of `example`, or of kronecker). The time of a step is that of the slowest rank. The
program prints the medians, their ratio, and that ratio over one process's. Aim: within 10 %.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from flerm_client import FLeRM
from flerm_experiments.workloads import Scale, workload_named

ROUNDS = 9
SETS = [("alone", 1), *((wrapper, ranks) for ranks in (1, 2, 4) for wrapper in ("ddp", "fsdp"))]


def wrapped(model: Any, wrapper: str) -> Any:
    """The model as all ranks hold it together."""
    if wrapper == "ddp":
        return DistributedDataParallel(model)
    if wrapper == "fsdp":
        mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("dp",))
        for layer in model.layers:
            fully_shard(layer, mesh=mesh)
        return fully_shard(model, mesh=mesh)
    return model


def stepper(wrapper: str, estimator: str) -> Callable[[], None]:
    """A function that makes one training step of a new model, measured where an estimator is
    named.
    """
    workload = workload_named("decoder")
    model = wrapped(workload.build(Scale(width=4, depth=2), seed=0), wrapper)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    inputs, labels = next(iter(workload.batches(seed=0, rank=0, world=1)))
    if estimator:
        FLeRM.record(
            model, optimizer, probe=[inputs], family="bench", every=1, warmup=1, estimator=estimator
        )

    def step() -> None:
        optimizer.zero_grad()
        workload.loss(model(inputs), labels).backward()
        optimizer.step()

    return step


def slowest(seconds: float) -> float:
    """The longest time of any rank."""
    if not dist.is_initialized():
        return seconds
    found = torch.tensor([seconds], dtype=torch.float64)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return found.item()


def job(wrapper: str) -> None:
    """Prints the median seconds of each side as JSON, from rank 0."""
    if wrapper != "alone":
        dist.init_process_group("gloo")
    sides = {name or "plain": stepper(wrapper, name) for name in ("", "example", "kronecker")}
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for step in sides.values():
        step()
    for _ in range(ROUNDS):
        for name, step in sides.items():
            if dist.is_initialized():
                dist.barrier()
            began = time.perf_counter()
            step()
            taken[name].append(slowest(time.perf_counter() - began))
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(json.dumps({name: statistics.median(times) for name, times in taken.items()}))
    if dist.is_initialized():
        dist.destroy_process_group()


def main() -> None:
    """Runs all sets of ranks, one after the other."""
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, one thread a rank, "
        f"torch {torch.__version__}"
    )
    alone: dict[str, float] = {}
    for wrapper, ranks in SETS:
        launcher = (
            ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
            if wrapper != "alone"
            else []
        )
        command = [sys.executable, *launcher, __file__, wrapper]
        done = subprocess.run(
            command,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=True,
            capture_output=True,
            text=True,
        )
        found = json.loads(done.stdout.splitlines()[-1])
        ratios = {name: found[name] / found["plain"] for name in ("example", "kronecker")}
        alone = alone or ratios
        told = ", ".join(
            f"{name} × {ratio:.2f} ({ratio / alone[name]:.2f} of alone)"
            for name, ratio in ratios.items()
        )
        print(f"{wrapper:>5} {ranks}: plain {found['plain'] * 1e3:.0f} ms; {told}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        job(sys.argv[1])
    else:
        main()
