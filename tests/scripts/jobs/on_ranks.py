"""Runs scripts plain, recorded, matched and in two parts on every rank, and reports.

Arguments: the names of modules in `loops`.
"""

import faulthandler
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch
from distributed.rank import begin, report
from torch import distributed as dist

from tests.scripts.loop import HALF, Run, Script, Trained, assert_matched, targets_of


def assert_resumed(resumed: Trained, whole: Trained) -> None:
    assert resumed.losses == whole.losses[HALF:]
    assert all(torch.equal(resumed.weights[name], w) for name, w in whole.weights.items())
    rows, rows_of_whole = resumed.flerm.trajectory, whole.flerm.trajectory
    assert np.array_equal(rows.steps, rows_of_whole.steps)
    assert np.array_equal(rows.values, rows_of_whole.values, equal_nan=True)
    # A framework's checkpoint holds the losses of rank 0.
    assert dist.get_rank() or rows == rows_of_whole


def compared(script: Script, folder: Path) -> dict[str, Any]:
    """What this rank has to report of `script`."""

    def run(name: str, **options: object) -> Trained:
        (folder / name).mkdir(parents=True, exist_ok=True)
        return script(Run(folder / name, **options))

    plain = run("plain")
    recorded = run("recorded", record=True)
    assert recorded.losses == plain.losses
    assert all(torch.equal(recorded.weights[name], w) for name, w in plain.weights.items())
    assert len(recorded.flerm.trajectory.steps) >= 3
    run("recorded in two", record=True, stop=True)
    assert_resumed(run("recorded in two", record=True, resume=True), recorded)

    targets = targets_of(recorded)
    matched = run("matched", record=True, targets=targets)
    assert_matched(plain, matched, targets)
    run("matched in two", record=True, targets=targets, stop=True)
    again = run("matched in two", record=True, targets=targets, resume=True)
    assert again.flerm.multipliers == matched.flerm.multipliers
    assert_resumed(again, matched)
    return {
        "losses": plain.losses,
        "fslr": recorded.flerm.fslr,
        "multipliers": matched.flerm.multipliers,
        "weights": matched.weights,
    }


begin()
found = {}
for name in sys.argv[1:]:
    faulthandler.dump_traceback_later(200, exit=True)
    script = import_module(f"tests.scripts.loops.{name}").train
    found[name] = compared(script, Path(os.environ["FLERM_TEST_FOLDER"]) / name)
report(found)
dist.destroy_process_group()
