"""What a look at a batch finds on sharded models; every rank reports what was raised and said."""

import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

import torch
from distributed import sharded
from distributed.rank import begin, report
from measured_runs import loss_of
from torch import Tensor, nn
from torch import distributed as dist

from flerm_client import FLeRM
from flerm_core.errors import FlermError


class NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x


class Scale(torch.autograd.Function):
    """Has a backward pass and no forward mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return gradients[0] * weight, (gradients[0] * x).sum((0, 1))


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = Scale.apply(x, self.weight)
        return scaled


class FusedDecoder(sharded.Decoder):
    def __init__(self) -> None:
        super().__init__()
        self.norm = Fused()


class Counting:
    """Outputs that depend on how often they were computed on this rank."""

    def __init__(self, rank: int) -> None:
        self.calls, self.rank = 0, rank

    def __call__(self, model: nn.Module, batch: Tensor) -> Tensor:
        self.calls += self.rank
        outputs: Tensor = model(batch)
        return outputs * (1 + self.calls)


def tried(kind: type, wrap: Any, on: Any, own: int, **options: Any) -> dict[str, Any]:
    """One step of a matched run."""
    model = wrap(sharded.build(kind).float(), on)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    targets = {name: 1.0 for name, _ in model.named_parameters()}
    before = [p.detach().to_local().clone() for p in model.parameters() if hasattr(p, "to_local")]
    found: dict[str, Any] = {"raised": "", "gradients": True}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        probe = [sharded.batch_of(20 + own)]
        flerm = FLeRM.match(model, optimizer, probe=probe, family="f", targets=targets, **options)
        loss_of(model(sharded.batch_of(own))).backward()
        gradients = [p.grad for p in model.parameters()]
        try:
            optimizer.step()
        except FlermError as error:
            found["raised"] = str(error)
            after = [p.detach().to_local() for p in model.parameters() if hasattr(p, "to_local")]
            found["untouched"] = all(map(torch.equal, before, after))
        found["gradients"] = all(
            p.grad is each for p, each in zip(model.parameters(), gradients, strict=True)
        )
    flerm.close("interrupted")
    said = [str(each.message) for each in told if "two forwards" in str(each.message)]
    return found | {"said": said, "fslr": flerm.fslr}


begin()
rank, size = dist.get_rank(), dist.get_world_size()
shards = (sharded.fsdp_blocks, sharded.world(size, names=("dp",)), rank)
slices = (sharded.tensor_parallel, sharded.world(size, names=("tp",)), 0)
results = {}
for how, kind, where in (
    ("fsdp", sharded.Decoder, shards),
    ("tp", sharded.ParallelDecoder, slices),
):
    results[f"{how}, no derivative"] = tried(
        kind, *where, output=lambda model, batch: NoBackward.apply(model(batch))
    )
    results[f"{how}, hidden state"] = tried(kind, *where, output=Counting(rank))
for name, draws in (("example", 64), ("exact", 1)):
    results[f"no forward mode, {name}"] = tried(FusedDecoder, *shards, estimator=name, warmup=draws)
report(results)
dist.destroy_process_group()
