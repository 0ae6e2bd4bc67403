"""Rank 1's probe breaks: every rank must raise the same sentence."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from distributed.launch import report
from measure.runs import fresh, loss_of
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from flerm_client import FLeRM
from flerm_core.errors import FlermError

estimator = sys.argv[1]
dist.init_process_group("gloo")
model, batches = fresh("resmlp")
ddp = DistributedDataParallel(model)
optimizer = torch.optim.SGD(ddp.parameters(), 1e-2)
probe = [torch.randn(4, 8 if dist.get_rank() == 0 else 9)]
FLeRM.record(ddp, optimizer, probe=probe, family="f", estimator=estimator)
loss_of(ddp(batches[0])).backward()
try:
    optimizer.step()
except FlermError as error:
    report((type(error).__name__, str(error)))
dist.destroy_process_group()
