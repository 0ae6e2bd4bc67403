"""Data parallelism by hand: each rank averages gradients itself, with Muon beside AdamW.

Or the same under Fabric, whose wrapper holds a DistributedDataParallel.
"""

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

import torch
from distributed.hand_made import STEPS, batch_of, model_and_optimizers, probe_of_rank, targets
from distributed.rank import begin, report, sent
from torch import distributed as dist

from flerm_client import FLeRM
from flerm_client.integrations._checkpoint import collect_state, restore
from flerm_client.training.checkpoint import unpack
from flerm_core.errors import Unsupported

begin()
rank, world = dist.get_rank(), dist.get_world_size()


def run() -> dict[str, Any]:
    model, optimizers = model_and_optimizers()
    keywords: dict[str, Any] = {
        "probe": probe_of_rank(rank),
        "family": "f",
        "estimator": "exact",
        "lr": 1e-2,
    }
    try:
        FLeRM.match(model, optimizers, targets=targets(), **keywords)
    except Unsupported as error:
        refused = str(error)
    flerm = FLeRM.match(
        model, optimizers, targets=targets(), process_group=dist.group.WORLD, **keywords
    )
    for model.step in range(STEPS):
        model(batch_of(model.step, rank)).square().mean().backward()
        for parameter in [p for p in model.parameters() if p.grad is not None]:
            dist.all_reduce(parameter.grad)
            parameter.grad /= world
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    state = [collect_state(flerm)]
    flerm.close()
    dist.broadcast_object_list(state)  # a framework saves one value, on rank 0
    resumed = FLeRM.match(
        model, optimizers, targets=targets(), process_group=dist.group.WORLD, **keywords
    )
    restore(resumed, state[0])
    parts = [unpack(each)["ranks"] for each in (state[0], collect_state(resumed))]
    resumed.close()
    return {
        "looks": looks_for_a_tensor_that_never_moves(),
        "resumed": (resumed.steps, resumed.multipliers, resumed.fslr),
        "parts": parts,
        "refused": refused,
        "multipliers": flerm.multipliers,
        "fslr": flerm.fslr,
        "steps": flerm.trajectory.steps.tolist(),
        "weights": [p.detach().clone() for p in model.parameters()],
    }


def looks_for_a_tensor_that_never_moves() -> int:
    """How many all-reduces 130 steps make after the one that is measured."""
    model, (optimizer, _) = model_and_optimizers()
    flerm = FLeRM.record(
        model,
        optimizer,
        probe=probe_of_rank(rank),
        family="f",
        process_group=dist.group.WORLD,
        every=1000,
    )
    matrix = model.layers[0].weight
    matrix.grad = torch.ones_like(matrix)
    optimizer.step()
    with sent("all_reduce") as found:
        for _ in range(130):
            optimizer.step()
    flerm.close()
    return len(found)


def run_fabric() -> dict[str, float]:
    from lightning.fabric import Fabric  # slow to import

    os.environ |= {"TORCHELASTIC_RUN_ID": "0", "LOCAL_RANK": str(rank)}
    fabric = Fabric(accelerator="cpu", devices=world, strategy="ddp")
    fabric.launch()
    model, (optimizer, _) = model_and_optimizers()
    model.step = 1
    model, optimizer = fabric.setup(model, optimizer)
    probe = probe_of_rank(rank)
    flerm = FLeRM.record(model, optimizer, probe=probe, family="f", estimator="exact")
    fabric.backward(model(batch_of(0, rank)).square().mean())
    optimizer.step()
    flerm.close()
    return flerm.fslr


report(run() if sys.argv[1] == "by hand" else run_fabric())
dist.destroy_process_group()
