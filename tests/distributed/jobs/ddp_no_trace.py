"""The same DDP training with and without a recording, under DDP's options; every rank reports whether they are the same."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from distributed.rank import begin, report
from measure.runs import Trace, fresh, leave, loss_of, same
from torch import distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from flerm_client import FLeRM

OPTIONS: dict[str, dict[str, Any]] = {
    "unused": {"gradient_as_bucket_view": True, "find_unused_parameters": True},
    "static graph": {"static_graph": True},
    "hook": {"broadcast_buffers": False},
}
begin()
rank = dist.get_rank()


def train(how: str, estimator: str) -> Trace:
    model, _ = fresh("convnet" if how == "unused" else "resmlp")
    generator = torch.Generator().manual_seed(100 + rank)
    shape = (8, 2, 6, 6) if how == "unused" else (8, 8)
    batches = [torch.randn(shape, generator=generator) for _ in range(5)]
    ddp = DistributedDataParallel(model, **OPTIONS[how])
    if how == "hook":
        ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)
    optimizer = torch.optim.Adam(ddp.parameters(), 1e-2)
    if estimator:
        probe = (torch.randn(shape) for _ in iter(int, 1))
        FLeRM.record(ddp, optimizer, probe=probe, family="f", every=2, warmup=2, estimator=estimator)
    trace = Trace()
    for batch in batches:
        optimizer.zero_grad()
        loss = loss_of(ddp(batch))
        loss.backward()
        optimizer.step()
        trace.losses.append(loss.item())
    return leave(trace, model, optimizer)


results = {}
for how in OPTIONS:
    plain = train(how, "")
    for estimator in ("example", "kronecker"):
        results[how, estimator] = same(plain, train(how, estimator))
report(results)
dist.destroy_process_group()
