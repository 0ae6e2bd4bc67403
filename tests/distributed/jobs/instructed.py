"""A script of DDP with `FLeRM.auto`, which its environment tells to record or to match."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

import torch
from distributed.rank import begin, report
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from flerm_client import FLeRM

begin()
width = int(os.environ["WIDTH"])
torch.manual_seed(0)
model = DistributedDataParallel(nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2)))
generator = torch.Generator().manual_seed(dist.get_rank())
batches = [torch.randn(8, 4, generator=generator) for _ in range(4)]
optimizer = torch.optim.Adam(model.parameters(), float(os.environ["FLERM_LR"] or 0.01))
flerm = FLeRM.auto(model, optimizer, probe=batches, warmup=2)
losses = []
for batch in batches:
    loss = model(batch).square().mean()
    optimizer.zero_grad()
    loss.backward()
    flerm.log(loss=loss)
    optimizer.step()
    losses.append(loss.item())
flerm.close()
report({"losses": losses, "multipliers": flerm.multipliers, "measurements": flerm.measurements})
