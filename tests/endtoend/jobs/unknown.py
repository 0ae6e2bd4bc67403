"""On every rank: matches three times what the registry does not know, and reports the errors."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

import torch
from distributed.rank import report
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from flerm_client import FLeRM
from flerm_core.errors import FlermError

dist.init_process_group("gloo")
known = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
other = torch.nn.ModuleDict({"surprise": torch.nn.Linear(4, 2)})
told = []
for model, family, lr in ((known, "nobody", 1e-3), (known, "known", 1.0), (other, "known", 1e-3)):
    ddp = DistributedDataParallel(model)
    try:
        FLeRM.match(
            ddp, torch.optim.SGD(ddp.parameters(), lr), probe=[torch.randn(4, 4)], family=family
        )
    except FlermError as error:
        told.append((type(error).__name__, str(error)))
report(told)
dist.destroy_process_group()
