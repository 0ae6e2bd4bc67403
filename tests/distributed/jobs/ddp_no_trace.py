"""The same DDP training with and without a recording; every rank reports both."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from distributed.launch import report
from measure.runs import Trace, fresh, leave, loss_of, same
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from flerm_client import FLeRM

dist.init_process_group("gloo")
rank = dist.get_rank()


def train(record: bool) -> Trace:
    model, _ = fresh("convnet")
    generator = torch.Generator().manual_seed(100 + rank)
    batches = [torch.randn(8, 2, 6, 6, generator=generator) for _ in range(5)]
    ddp = DistributedDataParallel(model, gradient_as_bucket_view=True, find_unused_parameters=True)
    optimizer = torch.optim.Adam(ddp.parameters(), 1e-2)
    if record:
        probe = (torch.randn(8, 2, 6, 6) for _ in iter(int, 1))
        FLeRM.record(ddp, optimizer, probe=probe, family="f", every=2, warmup=2)
    trace = Trace()
    for batch in batches:
        optimizer.zero_grad()
        loss = loss_of(ddp(batch))
        loss.backward()
        optimizer.step()
        trace.losses.append(loss.item())
    return leave(trace, model, optimizer)


report(same(train(False), train(True)))
dist.destroy_process_group()
