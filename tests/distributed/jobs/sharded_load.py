"""Loads what two ranks of FSDP2 saved (jobs/sharded_train.py), sharded otherwise, and continues."""

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

import torch
from distributed import sharded
from distributed.rank import begin, report
from measured_runs import trained
from torch import distributed as dist
from torch.distributed import checkpoint
from torch.nn.parallel import DistributedDataParallel

from flerm_client import FLeRM

begin()
rank, size = dist.get_rank(), dist.get_world_size()
folder = Path(os.environ["FLERM_TEST_FOLDER"]) / "checkpoint"
HOW: dict[str, Any] = {
    "fsdp": (lambda model: sharded.fsdp_blocks(model, sharded.world(size, names=("dp",))), rank),
    "hsdp": (
        lambda model: sharded.fsdp_blocks(
            model, sharded.world(2, size // 2, names=("replicate", "shard"))
        ),
        rank,
    ),
    "tp": (lambda model: sharded.tensor_parallel(model, sharded.world(size, names=("tp",))), 0),
    "ddp": (lambda model: DistributedDataParallel(model), rank),
}
results = {}
for how, (wrap, own) in HOW.items():
    model = wrap(sharded.build().float())
    bare = model.module if how == "ddp" else model
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    targets = {name: 1.0 for name, _ in bare.named_parameters()}
    probe = [sharded.batch_of(20 + own)]
    flerm = FLeRM.match(
        model, optimizer, probe=probe, family="f", targets=targets, every=2, warmup=2
    )
    state = {"model": bare.state_dict(), "flerm": flerm}
    checkpoint.load(state, checkpoint_id=folder)
    bare.load_state_dict(state["model"])
    loaded = {
        "id": flerm.recording_id,
        "steps": flerm.steps,
        "multipliers": flerm.multipliers,
        "fslr": flerm.fslr,
    }
    trained(model, optimizer, [sharded.batch_of(100 + 10 * step + own) for step in range(2)])
    results[how] = {
        **loaded,
        "measured": flerm.trajectory.steps.tolist(),
        "later": flerm.multipliers,
    }
report(results)
dist.destroy_process_group()
