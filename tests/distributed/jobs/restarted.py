"""A run of ten steps with a checkpoint after the fourth.

After the fifth, rank 1 is killed, and torchrun starts the group again.

`restarted.py ddp|fsdp REGISTRY`. Every rank reports what it has at the end, and what a run without
the restart has.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

import torch
from distributed import sharded
from distributed.rank import begin, report
from measured_runs import loss_of
from torch import distributed as dist
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.parallel import DistributedDataParallel

from flerm_client import FLeRM

STEPS, SAVED_AFTER, KILLED_AFTER = 10, 4, 5
wrapper, registry = sys.argv[1:]
begin()
rank, size = dist.get_rank(), dist.get_world_size()
folder = Path(os.environ["FLERM_TEST_FOLDER"])
first_time = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"


def begin_run(registry: str | None) -> tuple[Any, Any, FLeRM]:
    model: Any = sharded.build().float()
    if wrapper == "ddp":
        model = DistributedDataParallel(model)
    else:
        model = sharded.fsdp_blocks(model, sharded.world(size, names=("dp",)))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    probe = [sharded.batch_of(20 + 5 * rank + at) for at in range(3)]
    flerm = FLeRM.record(
        model, optimizer, probe=probe, family="restarted", every=2, warmup=2, registry=registry
    )
    return model, optimizer, flerm


def take(step: int, model: Any, optimizer: Any, flerm: FLeRM) -> None:
    optimizer.zero_grad()
    loss = loss_of(model(sharded.batch_of(100 + 10 * step + rank)))
    loss.backward()
    flerm.log(loss=loss.detach())
    optimizer.step()


def states(model: Any, optimizer: Any, flerm: FLeRM) -> dict[str, Any]:
    weights, moments = get_state_dict(model, optimizer)
    return {
        "model": weights,
        "optimizer": moments,
        "flerm": flerm,
        "step": torch.zeros((), dtype=torch.int64),
    }


model, optimizer, flerm = begin_run(registry)
done = 0
if not first_time:
    state = states(model, optimizer, flerm)
    checkpoint.load(state, checkpoint_id=folder / "checkpoint")
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )
    done = int(state["step"])
for step in range(done + 1, STEPS + 1):
    take(step, model, optimizer, flerm)
    if first_time and step == KILLED_AFTER:  # measured and spooled, and not in the checkpoint
        dist.barrier()
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
    if step == SAVED_AFTER:
        state = states(model, optimizer, flerm)
        state["step"].fill_(step)
        checkpoint.save(state, checkpoint_id=folder / "checkpoint")
flerm.close()
undisturbed = begin_run(None)
for step in range(1, STEPS + 1):
    take(step, *undisturbed)
report(
    {
        "began at": done + 1,
        "id": flerm.recording_id,
        "steps": flerm.trajectory.steps.tolist(),
        "undisturbed": undisturbed[2].trajectory.values,
        "own": flerm.trajectory.values,
    }
)
dist.destroy_process_group()
