"""What a registry holds of a sweep: trainings that another sweep would do alike count, others do
not."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from flerm_experiments.sweep.registry_state import finished_trials
from flerm_experiments.sweep.runner import run_sweep
from flerm_experiments.sweep.spec import Cell
from flerm_experiments.workloads import Scale
from tests.experiments.sweeps import LONGER, SWEEP, InProcessExecutor


def test_another_number_of_steps_is_another_sweep(registry: str) -> None:
    assert finished_trials(replace(SWEEP, steps=5), registry) == {}
    assert finished_trials(replace(SWEEP, base_seeds=3), registry).keys() == {
        trial
        for trial in finished_trials(SWEEP, registry)
        if trial.cell is None or trial.cell.variant != "matched"
    }, "targets of more seeds are other targets"


def test_a_training_is_found_again_by_every_field_of_its_scale(
    registry: str, tmp_path: Path
) -> None:
    shutil.copytree(registry.removeprefix("file://"), tmp_path / "registry")
    own = f"file://{tmp_path}/registry"
    sizes = (Scale(depth=2), Scale(init_scale=0.5), Scale(batch=2))
    sweep = replace(SWEEP, cells=tuple(Cell(scale=scale) for scale in sizes))
    run_sweep(sweep, own, InProcessExecutor())
    assert {trial.cell for trial in finished_trials(sweep, own)} == {None, *sweep.cells}


def test_a_longer_training_is_done_once_for_all_sweeps_that_ask_for_it(
    longer_registry: str,
) -> None:
    again = InProcessExecutor()
    run_sweep(LONGER, longer_registry, again)
    assert again.jobs == []
    as_long = replace(LONGER, steps=8, cells=tuple(replace(cell, steps=1) for cell in LONGER.cells))
    assert {trial.cell for trial in finished_trials(as_long, longer_registry)} == {
        as_long.cells[0]
    }, "plain; what is matched has another base"
