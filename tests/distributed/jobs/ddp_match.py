"""DDP runs that match fixed targets, once or every other step.

Every rank reports its weights, multipliers and learning rates.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

import torch
from distributed.rank import begin, report
from measured_runs import fresh, trained
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from flerm_client import FLeRM

begin()
rank = dist.get_rank()


def run(every: int) -> dict[str, Any]:
    model, _ = fresh("resmlp")
    generator = torch.Generator().manual_seed(100 + rank)
    batches = [torch.randn(12, 8, generator=generator) for _ in range(6)]
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(ddp.parameters(), 1e-3)
    targets = {name: 1.0 for name, _ in model.named_parameters()}
    probe = [torch.randn(16 + 4 * rank, 8, generator=generator) for _ in range(4)]
    flerm = FLeRM.match(ddp, optimizer, probe=probe, family="f", targets=targets, every=every)
    trained(ddp, optimizer, batches)
    return {
        "weights": {name: p.detach() for name, p in model.named_parameters()},
        "multipliers": flerm.multipliers,
        "fslr": flerm.fslr,
        "rates": flerm.learning_rates(),
    }


report({every: run(every) for every in (100, 2)})
dist.destroy_process_group()
