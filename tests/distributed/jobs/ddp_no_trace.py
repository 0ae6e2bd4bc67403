"""The same DDP training with and without a recording, under DDP's options.

Every rank reports whether the two are the same, and the sharpness of each measurement.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

import torch
from distributed.rank import begin, report
from measured_runs import Trace, fresh, leave, loss_of, same, trained
from torch import distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from flerm_client import FLeRM

OPTIONS: dict[str, dict[str, Any]] = {
    "unused": {"gradient_as_bucket_view": True, "find_unused_parameters": True},
    "static graph": {"static_graph": True},
    "static graph, unused": {"static_graph": True, "find_unused_parameters": True},
    "accumulating": {},
    "hook": {"broadcast_buffers": False},
}
begin()
rank = dist.get_rank()


def accumulating(ddp: DistributedDataParallel) -> Any:
    """The model; before each training batch another one leaves unreduced gradients."""

    def call(batch: torch.Tensor) -> torch.Tensor:
        with ddp.no_sync():
            loss_of(ddp(-batch)).backward()
        return ddp(batch)

    return call


def train(how: str, estimator: str, **options: Any) -> tuple[Trace, FLeRM | None]:
    model, _ = fresh("convnet" if how == "unused" else "resmlp")
    generator = torch.Generator().manual_seed(100 + rank)
    shape = (8, 2, 6, 6) if how == "unused" else (8, 8)
    batches = [torch.randn(shape, generator=generator) for _ in range(5)]
    ddp = DistributedDataParallel(model, **OPTIONS[how])
    if how == "hook":
        ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)
    optimizer = torch.optim.Adam(ddp.parameters(), 1e-2)
    flerm = None
    if estimator:
        probe = (torch.randn(shape) for _ in iter(int, 1))
        flerm = FLeRM.record(
            ddp,
            optimizer,
            probe=probe,
            family="f",
            every=2,
            warmup=2,
            estimator=estimator,
            **options,
        )
    losses = trained(accumulating(ddp) if how == "accumulating" else ddp, optimizer, batches)
    return leave(Trace(losses), model, optimizer), flerm


results = {}
for how in OPTIONS:
    plain, _ = train(how, "")
    for estimator in ("example", "kronecker"):
        results[how, estimator] = same(plain, train(how, estimator)[0])
sharp, flerm = train("hook", "example", sharpness=lambda model, batch: loss_of(model(batch)))
results["hook", "sharpness"] = same(plain, sharp)
assert flerm is not None
report({"same": results, "sharpness": flerm.auxiliary.scalars["sharpness"]})
dist.destroy_process_group()
