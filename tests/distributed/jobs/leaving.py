"""Leaves process groups right after a collective, while the DDP model still exists.

A gloo worker may then be waiting for the interpreter's lock. The long switch interval makes that
more likely: it happens in one round of three.
"""

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


def leave_a_group() -> None:
    group = dist.new_group([0, 1])
    model = DistributedDataParallel(nn.Linear(4, 4), process_group=group)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    if "measured" in sys.argv:
        FLeRM.record(model, optimizer, probe=[torch.randn(8, 4)], family="f").close()
    model(torch.randn(2, 4)).sum().backward()
    texts = [""] * 2
    dist.all_gather_object(texts, "the last word", group=group)
    dist.destroy_process_group(group)


begin()
sys.setswitchinterval(100.0)
for _ in range(12):
    leave_a_group()
sys.setswitchinterval(0.005)
report("left")
dist.destroy_process_group()
