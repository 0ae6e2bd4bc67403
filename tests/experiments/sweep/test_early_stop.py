"""Hopeless runs are stopped early, by the rule that the sweep names, and count as done."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from flerm_core.errors import InvalidInput
from flerm_experiments.sweep.command_executor import CommandExecutor
from flerm_experiments.sweep.early_stop import Losses, reason_to_stop
from flerm_experiments.sweep.registry_state import finished_trials
from flerm_experiments.sweep.runner import run_sweep
from flerm_experiments.sweep.spec import load
from tests.experiments.sweep.command_scripts import recordings

GOOD = [{1: 5.0, 101: 2.0, 201: 1.0}, {1: 5.0, 101: 2.2, 201: 1.1}, {1: 5.0, 101: 2.4, 201: 1.2}]


def test_a_run_that_is_far_behind_is_stopped_and_one_that_leads_is_not() -> None:
    why = reason_to_stop(Losses({1: 5.0, 101: 4.9, 201: 4.8}, GOOD))
    assert why == "at step 101 its loss 4.9 is above the median of other rates"
    assert reason_to_stop(Losses({1: 5.0, 101: 1.9, 201: 0.9}, GOOD)) == ""
    assert reason_to_stop(Losses({1: 5.0}, GOOD)) == ""
    assert reason_to_stop(Losses({1: 5.0, 101: 4.9}, [])) == ""


SCRIPT = """
import sys, time
from flerm_client.registry.client import RegistryClient
from flerm_client.training.run_instructions import RunInstructions
lr = float(sys.argv[1])
said = RunInstructions.from_environment()
with RegistryClient() as registry:
    run = registry.start_recording(
        said.family, lr, ["w"], [[2]], seed=said.seed, tags=said.tags, config=said.config
    )
    for step in (1, 2, 3):
        registry.append(run, [step], [[1.0]], losses=[9.0 if lr > 0.5 else 1.0 + lr - step / 10])
    if lr > 0.5:
        time.sleep(600)
    registry.finish(run, final_loss=1.0 + lr, final_step=3)
"""


def test_a_stopped_run_counts_as_done_and_as_worse_than_any_loss(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    path = tmp_path / "mine.toml"
    path.write_text(
        f'command = "{sys.executable} train.py {{lr}} {{n}}"\nrates = [0.1, 0.2, 0.9]\n'
        "base_seeds = 1\nvariants = []\n[base]\nn = 1\n[target]\nn = 2\n"
        "[run]\nearly_stop = true\n"
    )
    sweep, address = load(str(path)), f"file://{tmp_path}/registry"
    assert run_sweep(sweep, address, CommandExecutor(sweep.command.limits)).failures == {}
    losses = {trial.lr_index: each.loss for trial, each in finished_trials(sweep, address).items()}
    assert losses == {0: pytest.approx(1.1), 1: pytest.approx(1.2), 2: float("inf")}
    (stopped,) = recordings(address, status="interrupted")
    assert stopped.spec.lr == 0.9
    assert stopped.remarks[-1].startswith("stopped early: at step 2 its loss 9 is above")
    before = len(recordings(address))
    run_sweep(sweep, address, CommandExecutor(sweep.command.limits))
    assert len(recordings(address)) == before
    path.write_text(path.read_text().replace("true", "1"))
    with pytest.raises(InvalidInput, match="early_stop is 1, but it must be true or false"):
        load(str(path))
