"""DDP runs matched by the tokens that rank 0 logs; the other rank logs none, or other numbers.

A step for which rank 0 logs none is refused on both ranks, and taken again.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

import torch
from distributed.rank import begin, report
from measured_runs import fresh, loss_of
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from flerm_client import FLeRM
from flerm_core import Trajectory
from flerm_core.errors import FlermError

begin()
rank = dist.get_rank()
FORGOTTEN = 3


def run(others: int | None) -> dict[str, Any]:
    """Rank 0 logs 15 tokens a step, the others `others`; at step 3 rank 0 forgets it at first."""
    model, _ = fresh("resmlp")
    generator = torch.Generator().manual_seed(100 + rank)
    batches = [torch.randn(12, 8, generator=generator) for _ in range(4)]
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(ddp.parameters(), 1e-3)
    names, shapes = zip(
        *((name, tuple(p.shape)) for name, p in model.named_parameters()), strict=True
    )
    values = [[value] * len(names) for value in (1, 2, 4)]
    base = Trajectory(names, shapes, [1, 3, 5], values, tokens=[10, 30, 50])
    probe = [torch.randn(16, 8, generator=generator) for _ in range(4)]
    flerm = FLeRM.match(
        ddp, optimizer, probe=probe, family="f", targets=base, every=1, clock="tokens"
    )
    aimed, told = [], ""
    for step, batch in enumerate(batches, 1):
        optimizer.zero_grad()
        loss_of(ddp(batch)).backward()
        if rank or step != FORGOTTEN:
            flerm.log(tokens=15 * step if rank == 0 else others)
        before = [p.detach().clone() for p in model.parameters()]
        try:
            optimizer.step()
        except FlermError as error:
            told = str(error)
            assert all(map(torch.equal, before, model.parameters()))
            if rank == 0:
                flerm.log(tokens=15 * step)
            optimizer.step()
        aimed.append(flerm.targets["input.weight"])
    flerm.close()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    return {"aimed": aimed, "told": told, "multipliers": flerm.multipliers, "weights": weights}


report({others: run(others) for others in (None, 7)})
dist.destroy_process_group()
