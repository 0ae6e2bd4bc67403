"""Prints peaks of memory in MiB over the memory between steps, as JSON.

"plain": of a plain step. "first", "later": of the first and of a later measured step. "stays": what
is still used after them. Pages of files are left out: a first measurement loads some 7 MiB of
torch's code, and how many depends on the machine.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flerm_client import FLeRM

checkpointed = sys.argv[1] == "checkpointed"


class Blocks(nn.Module):
    """12 blocks whose activations take far more memory than their weights."""

    def __init__(self) -> None:
        super().__init__()
        parts = [
            (nn.LayerNorm(128), nn.Linear(128, 512), nn.GELU(), nn.Linear(512, 128))
            for _ in range(12)
        ]
        self.blocks = nn.ModuleList(nn.Sequential(*each) for each in parts)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + (checkpoint(block, x, use_reentrant=False) if checkpointed else block(x))
        return x


def memory(line: str) -> float:
    return int(Path("/proc/self/status").read_text().split(f"{line}:")[1].split()[0]) / 1024


def peak(run: Callable[[], None]) -> float:
    Path("/proc/self/clear_refs").write_text("5")
    run()
    return memory("VmHWM") - memory("RssFile") - between


model = Blocks()
optimizer = torch.optim.SGD(model.parameters(), 1e-3)
inputs = torch.randn(8, 128, 128)


def step() -> None:
    optimizer.zero_grad()
    model(inputs).square().mean().backward()
    optimizer.step()


step()
between = memory("RssAnon")
plain = peak(step)
flerm = FLeRM.record(model, optimizer, probe=[inputs], family="f", every=1, warmup=1)
first, later = peak(step), peak(step)
assert flerm.trajectory.steps.tolist() == [1, 2]
stays = memory("RssAnon") - between
print(json.dumps({"plain": plain, "first": first, "later": later, "stays": stays}))
