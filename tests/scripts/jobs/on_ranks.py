"""Runs one script plain, recorded and matched on every rank, and reports what each rank has.

Argument: the name of a module in `loops`.
"""

import os
import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from distributed.rank import begin, report
from torch import distributed as dist

from tests.scripts.loop import Run, assert_matched, targets_of

begin()
script = import_module(f"tests.scripts.loops.{sys.argv[1]}").train
folder = Path(os.environ["FLERM_TEST_FOLDER"])
for name in ("plain", "recorded", "matched"):
    (folder / name).mkdir(exist_ok=True)
plain = script(Run(folder / "plain"))
recorded = script(Run(folder / "recorded", record=True))
assert recorded.losses == plain.losses
assert all(torch.equal(recorded.weights[name], w) for name, w in plain.weights.items())
assert len(recorded.flerm.trajectory.steps) >= 3
targets = targets_of(recorded)
matched = script(Run(folder / "matched", record=True, targets=targets))
assert_matched(plain, matched, targets)
report(
    {
        "losses": plain.losses,
        "fslr": recorded.flerm.fslr,
        "multipliers": matched.flerm.multipliers,
        "weights": matched.weights,
    }
)
dist.destroy_process_group()
