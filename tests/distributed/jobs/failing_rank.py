"""Rank 1's probe fails; every rank must raise the same sentence.

Argument: ddp, or fsdp, where the ranks' forwards wait for each other.
"""

import sys
import warnings
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

import torch
from distributed.rank import report
from measured_runs import fresh, loss_of
from torch import distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from flerm_client import FLeRM
from flerm_core.errors import FlermError

dist.init_process_group("gloo", timeout=timedelta(seconds=10))
found = []


def probe(width: int):
    yield torch.randn(4, width)
    raise OSError("the file is gone")


def local(parameter: torch.Tensor) -> torch.Tensor:
    """This rank's part of a parameter."""
    return (parameter.to_local() if hasattr(parameter, "to_local") else parameter).detach()


# What is not finite on one rank is said with its cause, and ends no run, in lockstep neither.
def told_of(poisoned: str) -> list[str]:
    model, batches = fresh("resmlp")
    model = DistributedDataParallel(model) if sys.argv[1] == "ddp" else fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    factors = [1.0, torch.nan if dist.get_rank() == 1 else 1.0]
    batches_of = [torch.ones(4, 8) * (each if poisoned == "probe" else 1.0) for each in factors]
    flerm = FLeRM.record(model, optimizer, probe=batches_of, family="f", every=1, warmup=2)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for number, batch in enumerate(batches[:3]):
            optimizer.zero_grad()
            loss = loss_of(model(batch))
            (loss * factors[1] if poisoned == "loss" and number == 1 else loss).backward()
            optimizer.step()
    assert flerm.steps == 3
    return [str(each.message).partition(" (")[0] for each in told if "FLeRM" in str(each.message)]


not_finite = [told_of("probe"), told_of("loss")]
if dist.get_rank() == 0:  # what a rank measures by itself is nothing to the others
    own = DistributedDataParallel(
        fresh("resmlp")[0], process_group=dist.new_group([0], use_local_synchronization=True)
    )
    FLeRM.record(
        own, torch.optim.SGD(own.parameters(), 1e-2), probe=[torch.randn(4, 8)], family="f"
    ).close()
for estimator in ("example", "kronecker") if sys.argv[1] == "ddp" else ("kronecker",):
    for width in (8, 9) if dist.get_rank() == 1 else (8, 8):
        model, batches = fresh("resmlp")
        model = DistributedDataParallel(model) if sys.argv[1] == "ddp" else fully_shard(model)
        optimizer = torch.optim.SGD(model.parameters(), 1e-2)
        # First only rank 1's loader fails, at its second batch; then its forward.
        batches_of = (
            probe(8)
            if width == 8 and len(found) % 2 == 0 and dist.get_rank() == 1
            else [torch.randn(4, width)]
        )
        before = [local(parameter).clone() for parameter in model.parameters()]
        try:
            FLeRM.match(
                model,
                optimizer,
                probe=batches_of,
                family="f",
                estimator=estimator,
                warmup=2,
                targets={name: 1.0 for name, _ in fresh("resmlp")[0].named_parameters()},
            )
            loss_of(model(batches[0])).backward()
            optimizer.step()
        except FlermError as error:
            found.append((type(error).__name__, str(error)))
        if width == 9 or (dist.get_rank() == 0 and len(found) % 2 == 0):
            # The forward of a batch fails before any weight moves.
            assert all(map(torch.equal, map(local, model.parameters()), before))

# A recording run goes on where all ranks know of the failure, and rank 0 says what failed.
model, batches = fresh("resmlp")
model = DistributedDataParallel(model) if sys.argv[1] == "ddp" else fully_shard(model)
optimizer = torch.optim.SGD(model.parameters(), 1e-2)
if sys.argv[1] == "ddp":
    failing = probe(8) if dist.get_rank() == 1 else [torch.randn(4, 8)]
    flerm = FLeRM.record(model, optimizer, probe=failing, family="f", every=1, warmup=2)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for batch in batches[:4]:
            optimizer.zero_grad()
            loss_of(model(batch)).backward()
            optimizer.step()
    ours = [str(each.message) for each in told if "FLeRM" in str(each.message)]
    found.append(("goes on", f"{flerm.steps} {flerm.measurements}"))
    if dist.get_rank() == 0:
        assert len(ours) == 2 and "rank 1: OSError: the file is gone" in ours[0], ours
    else:
        assert not ours
report((found, not_finite))
