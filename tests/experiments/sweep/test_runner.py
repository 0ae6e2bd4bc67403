"""Sweeps carried out: every training is in the registry, nothing is trained twice, failures are
kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flerm_client import RegistryClient
from flerm_core.errors import InvalidInput
from flerm_experiments.sweep.registry_state import finished_trials
from flerm_experiments.sweep.runner import run_sweep
from flerm_experiments.sweep.spec import Cell
from flerm_experiments.sweep.trials import Trial
from tests.experiments.sweeps import LONGER, LONGER_VARIANTS, SWEEP, WIDE, InProcessExecutor


def test_every_training_is_a_recording_with_its_role_variant_and_scale(registry: str) -> None:
    entries = finished_trials(SWEEP, registry)
    with RegistryClient(registry) as client:
        recordings = {each.spec.id: each for each in client.recordings("resmlp")}
    assert {entry.recording for entry in entries.values()} == set(recordings)
    for trial, entry in entries.items():
        spec = recordings[entry.recording].spec
        assert (spec.seed, spec.lr) == (trial.seed, SWEEP.initial_lr * 2.0**trial.lr_index)
        if trial.cell is None:
            assert (spec.role, spec.variant, spec.config["width"]) == ("base", "plain", 1)
        else:
            assert (spec.role, spec.variant, spec.config["width"]) == (
                "scaled",
                trial.cell.variant,
                2,
            )
    assert {trial.cell for trial in entries} == {None, *SWEEP.cells}


def test_a_matched_training_takes_the_bases_recordings_at_its_rate_of_all_seeds(
    registry: str,
) -> None:
    entries = finished_trials(SWEEP, registry)
    with RegistryClient(registry) as client:
        for trial, entry in entries.items():
            if trial.cell == SWEEP.cells[1]:
                (spec,) = (
                    each.spec
                    for each in client.recordings("resmlp")
                    if each.spec.id == entry.recording
                )
                wanted = {entries[Trial(None, trial.lr_index, seed)].recording for seed in (0, 1)}
                assert set(spec.targets_sources) == wanted


def test_a_finished_sweep_trains_nothing_more_and_more_seeds_train_only_those(
    registry: str,
) -> None:
    with RegistryClient(registry) as client:
        before = {each.spec.tags["job"] for each in client.recordings("resmlp")}
    again = InProcessExecutor()
    run_sweep(SWEEP, registry, again)
    assert again.jobs == []
    more = InProcessExecutor()
    run_sweep(replace(SWEEP, seeds=2), registry, more)
    assert {job.seed for job in more.jobs if job.role == "scaled"} >= {1}
    keys = [job.tags["job"] for job in more.jobs]
    assert len(set(keys)) == len(keys)
    assert not set(keys) & before


def test_a_longer_training_records_its_own_length_and_is_matched_along_its_base(
    longer_registry: str,
) -> None:
    entries = finished_trials(LONGER, longer_registry)
    assert {trial.cell for trial in entries} == {None, *LONGER.cells}
    with RegistryClient(longer_registry) as client:
        found = {each.spec.id: each for each in client.recordings("resmlp")}
        multipliers = {
            trial.cell.variant: client.auxiliary(entry.recording).vectors["multiplier"]
            for trial, entry in entries.items()
            if trial.cell is not None
            and trial.cell.matches
            and (trial.lr_index, trial.seed) == (0, 0)
        }
    for trial, entry in entries.items():
        each = found[entry.recording]
        steps = 4 if trial.cell is None else 8
        assert (each.final_step, each.spec.tags["steps"], each.spec.config["steps"]) == (
            steps,
            str(steps),
            steps,
        )
        if trial.cell is not None and trial.cell.matches:
            assert set(each.spec.targets_sources) == {
                entries[Trial(None, trial.lr_index, seed)].recording for seed in (0, 1)
            }
    # At step 5 of 8, the clock "step" reads the base's last measured step, 3; "fraction" reads 2.5.
    assert {variant: len(rows) for variant, rows in multipliers.items()} == dict(
        zip(LONGER_VARIANTS[1:], (1, 2, 2), strict=True)
    )
    assert (multipliers["matched-periodic"][1] != multipliers["matched-fraction"][1]).any()


def test_a_cell_that_cannot_be_trained_is_refused_before_the_base_is(tmp_path: Path) -> None:
    place = InProcessExecutor()
    address = f"file://{tmp_path}/registry"
    with pytest.raises(
        InvalidInput,
        match="clock is 'tokens', but resmlp's data has none; allowed are step and fraction",
    ):
        run_sweep(
            replace(SWEEP, cells=(Cell(scale=WIDE, variant="matched-tokens"),)), address, place
        )
    with pytest.raises(
        InvalidInput,
        match=r"steps is 4000000, but it must be from 1 to \d+, where decoder's data ends",
    ):
        run_sweep(replace(SWEEP, workload="decoder", cells=(Cell(steps=10**6),)), address, place)
    assert place.jobs == []


def test_a_failure_is_reported_and_the_rest_goes_on(tmp_path: Path) -> None:
    address = f"file://{tmp_path}/registry"
    outcome = run_sweep(SWEEP, address, InProcessExecutor(failing="mup"))
    assert set(outcome.failures.values()) == {"no FSLR was measured"}
    assert {trial.cell for trial in outcome.failures} == {SWEEP.cells[2]}
    assert {trial.cell for trial in finished_trials(SWEEP, address)} == {None, *SWEEP.cells[:2]}
    retried = InProcessExecutor()
    assert run_sweep(SWEEP, address, retried).failures == {}
    assert {job.variant for job in retried.jobs} == {"mup"}


def test_a_base_recorded_by_two_estimators_serves_each_cell_by_its_own(tmp_path: Path) -> None:
    cells = (Cell(scale=WIDE, variant="matched-kronecker"), Cell(scale=WIDE, variant="matched"))
    both = replace(SWEEP, base_seeds=1, cells=cells)
    address = f"file://{tmp_path}/registry"
    assert run_sweep(both, address, InProcessExecutor()).failures == {}
    assert {trial.cell for trial in finished_trials(both, address)} == {None, *cells}
    with RegistryClient(address) as client:
        for each in client.recordings("resmlp"):
            assert each.spec.estimator.name == (
                "kronecker" if each.spec.variant == "matched-kronecker" else "example"
            ) or (each.spec.role == "base")


def test_targets_for_independent_decay_are_of_a_base_recorded_so(tmp_path: Path) -> None:
    cells = (Cell(scale=WIDE, variant="matched-independent"), Cell(scale=WIDE, variant="matched"))
    both = replace(SWEEP, base_seeds=1, cells=cells, optimizer="adamw-0.1")
    address = f"file://{tmp_path}/registry"
    assert run_sweep(both, address, InProcessExecutor()).failures == {}
    entries = finished_trials(both, address)
    assert {trial.cell for trial in entries} == {None, *cells}
    with RegistryClient(address) as client:
        specs = {each.spec.id: each.spec for each in client.recordings("resmlp")}
    for trial, entry in entries.items():
        if trial.cell is not None:
            (source,) = specs[entry.recording].targets_sources
            assert (
                source
                == entries[Trial(None, trial.lr_index, 0, trial.cell.base_measurement)].recording
            )
    losses = {
        trial.base_measurement: entry.loss
        for trial, entry in entries.items()
        if trial.cell is None and trial.lr_index == 0
    }
    assert losses.keys() == {"", "independent"}
    assert len(set(losses.values())) == 1, "how a base is measured is no matter of its training"


def test_progress_has_trials_done_trials_missing_and_the_time_left(tmp_path: Path) -> None:
    told: list[tuple[int, int, bool]] = []
    run_sweep(
        SWEEP,
        f"file://{tmp_path}/r",
        InProcessExecutor(),
        on_progress=lambda p: told.append((p.done, p.missing, p.seconds_left is not None)),
    )
    assert told[0] == (0, 3, False)
    assert [done for done, *_ in told] == sorted(done for done, *_ in told)
    assert all(missing > 0 for _, missing, _ in told)
    assert all(known for *_, known in told[1:])
