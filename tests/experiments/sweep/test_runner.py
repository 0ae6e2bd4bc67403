"""Sweeps carried out: all in the registry, nothing twice, failures kept, whatever happens to a
process."""

from __future__ import annotations

import os
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest

from flerm_client import RegistryClient
from flerm_client.cli import main
from flerm_core.errors import InvalidInput, MeasurementError
from flerm_experiments.sweep.executors import Executor, LocalExecutor, available_cores
from flerm_experiments.sweep.registry_state import finished_trials
from flerm_experiments.sweep.runner import run_sweep
from flerm_experiments.sweep.spec import Cell, Sweep
from flerm_experiments.sweep.trials import Trial
from flerm_experiments.sweep.worker import JobOutcome, run_job
from flerm_experiments.workloads import Scale
from flerm_experiments.workloads.train_loop import Job

WIDE = Scale(width=2)
SWEEP = Sweep(
    name="demo",
    workload="resmlp",
    initial_lr=2.0**-7,
    steps=4,
    base_seeds=2,
    cells=(Cell(scale=WIDE), Cell(scale=WIDE, variant="matched"), Cell(scale=WIDE, variant="mup")),
)


class Here(Executor):
    """Runs each job at once, in this process; fails those that `failing` names."""

    slots = 2

    def __init__(self, failing: str = "") -> None:
        self.failing, self.jobs = failing, list[Job]()

    def submit(self, job: Job) -> Future[JobOutcome]:
        self.jobs.append(job)
        future: Future[JobOutcome] = Future()
        if job.variant == self.failing:
            future.set_exception(MeasurementError("no FSLR was measured"))
        else:
            future.set_result(run_job(job))
        return future

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder registry in which the sweep was carried out once."""
    address = f"file://{tmp_path_factory.mktemp('sweep')}/registry"
    assert run_sweep(SWEEP, address, Here()).failures == {}
    return address


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
    again = Here()
    run_sweep(SWEEP, registry, again)
    assert again.jobs == []
    more = Here()
    run_sweep(replace(SWEEP, seeds=2), registry, more)
    assert {job.seed for job in more.jobs if job.role == "scaled"} >= {1}
    keys = [job.tags["job"] for job in more.jobs]
    assert len(set(keys)) == len(keys)
    assert not set(keys) & before


def test_another_number_of_steps_is_another_sweep(registry: str) -> None:
    assert finished_trials(replace(SWEEP, steps=5), registry) == {}
    assert finished_trials(replace(SWEEP, base_seeds=3), registry).keys() == {
        trial
        for trial in finished_trials(SWEEP, registry)
        if trial.cell is None or trial.cell.variant != "matched"
    }, "targets of more seeds are other targets"


VARIANTS = ("plain", "matched", "matched-periodic", "matched-fraction")
LONGER = replace(
    SWEEP, every=2, cells=tuple(Cell(scale=WIDE, variant=variant, steps=2) for variant in VARIANTS)
)


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder registry in which cells were trained twice as long as their base."""
    address = f"file://{tmp_path_factory.mktemp('longer')}/registry"
    assert run_sweep(LONGER, address, Here()).failures == {}
    return address


def test_a_longer_training_says_its_own_length_and_is_matched_along_its_base(longer: str) -> None:
    entries = finished_trials(LONGER, longer)
    assert {trial.cell for trial in entries} == {None, *LONGER.cells}
    with RegistryClient(longer) as client:
        found = {each.spec.id: each for each in client.recordings("resmlp")}
        multipliers = {
            trial.cell.variant: client.extras(entry.recording).vectors["multiplier"]
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
    # At step 5 of 8 the base is at its step 3 by step, its last, and at 2.5 by fraction.
    assert {variant: len(rows) for variant, rows in multipliers.items()} == dict(
        zip(VARIANTS[1:], (1, 2, 2), strict=True)
    )
    assert (multipliers["matched-periodic"][1] != multipliers["matched-fraction"][1]).any()


def test_a_longer_training_is_done_once_for_all_sweeps_that_ask_for_it(longer: str) -> None:
    again = Here()
    run_sweep(LONGER, longer, again)
    assert again.jobs == []
    as_long = replace(LONGER, steps=8, cells=tuple(replace(cell, steps=1) for cell in LONGER.cells))
    assert {trial.cell for trial in finished_trials(as_long, longer)} == {as_long.cells[0]}, (
        "plain; what is matched has another base"
    )


def test_a_longer_cells_row_and_figure_say_so(
    longer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "longer.toml"
    path.write_text(
        'workload = "resmlp"\ninitial_lr = 0.0078125\nsteps = 4\nevery = 2\nbase_seeds = 2\n'
        f"[[cell]]\nwidth = 2\nsteps = 2\nvariants = {list(VARIANTS)}\n"
    )
    assert main(["sweep", str(path), "--markdown", "--registry", longer]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| width ×2, steps ×2 |") for line in lines) == 4
    folder = tmp_path / "figures"
    assert (
        main(
            ["sweep", str(path), "--figure", str(folder), "--ending", "json", "--registry", longer]
        )
        == 0
    )
    assert {path.name for path in folder.iterdir()} == {
        "longer-fslr.json",
        "longer-width-steps.json",
    }


def test_a_cell_that_cannot_be_trained_is_refused_before_the_base_is(tmp_path: Path) -> None:
    place = Here()
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


def test_failures_are_kept_and_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    address = f"file://{tmp_path}/registry"
    outcome = run_sweep(SWEEP, address, Here(failing="mup"))
    assert set(outcome.failures.values()) == {"no FSLR was measured"}
    assert {trial.cell for trial in outcome.failures} == {SWEEP.cells[2]}
    assert {trial.cell for trial in finished_trials(SWEEP, address)} == {None, *SWEEP.cells[:2]}
    retried = Here()
    assert run_sweep(SWEEP, address, retried).failures == {}
    assert {job.variant for job in retried.jobs} == {"mup"}


def test_a_base_recorded_by_two_estimators_serves_each_cell_by_its_own(tmp_path: Path) -> None:
    cells = (Cell(scale=WIDE, variant="matched-kronecker"), Cell(scale=WIDE, variant="matched"))
    both = replace(SWEEP, base_seeds=1, cells=cells)
    address = f"file://{tmp_path}/registry"
    assert run_sweep(both, address, Here()).failures == {}
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
    assert run_sweep(both, address, Here()).failures == {}
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


def test_progress_tells_what_is_done_what_is_missing_and_how_long_it_takes(tmp_path: Path) -> None:
    told: list[tuple[int, int, bool]] = []
    run_sweep(
        SWEEP,
        f"file://{tmp_path}/r",
        Here(),
        on_progress=lambda p: told.append((p.done, p.missing, p.seconds_left is not None)),
    )
    assert told[0] == (0, 3, False)
    assert [done for done, *_ in told] == sorted(done for done, *_ in told)
    assert all(missing > 0 for _, missing, _ in told)
    assert all(known for *_, known in told[1:])


def test_more_jobs_than_cores_are_refused() -> None:
    with pytest.raises(
        InvalidInput,
        match=rf"jobs is {available_cores() + 1}, but it must be from 1 to {available_cores()}",
    ):
        LocalExecutor(available_cores() + 1)


@pytest.mark.slow
def test_a_process_that_dies_costs_its_own_job_and_no_other(tmp_path: Path) -> None:
    place = LocalExecutor(1)
    try:
        killed = place._pool.submit(os._exit, 1)
        assert killed.exception(60) is not None
        job = Job(
            workload="resmlp", lr=1e-2, steps=3, mode="record", registry=f"file://{tmp_path}/r"
        )
        assert place.submit(job).result(100).status == "completed"
    finally:
        place.close()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_sweep_on_a_ray_cluster_of_two_workers_gives_the_losses_of_a_local_one(
    registry: str, tmp_path: Path
) -> None:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    from flerm_experiments.sweep.executors import RayExecutor

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        os.environ["RAY_ADDRESS"] = cluster.address
        place = RayExecutor()
        assert place.slots == 2
        address = f"file://{tmp_path}/registry"
        assert run_sweep(SWEEP, address, place).failures == {}
        here, there = finished_trials(SWEEP, registry), finished_trials(SWEEP, address)
        assert {trial: entry.loss for trial, entry in there.items()} == {
            trial: here[trial].loss for trial in there
        }
        assert len(there) >= 15
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(
        'workload = "resmlp"\ninitial_lr = 0.0078125\nsteps = 4\nbase_seeds = 2\n'
        '[[cell]]\nwidth = 2\nvariants = ["plain", "matched", "mup"]\n'
    )
    return path


def test_the_table_lists_every_cell_with_its_shift(
    registry: str, sweep_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(sweep_file), "--table", "--registry", registry]) == 0
    printed = capsys.readouterr().out
    for word in ("base", "width ×2", "plain", "matched", "mup", "shift", "loss at base's rate"):
        assert word in printed
    assert main(["sweep", str(sweep_file), "--markdown", "--registry", registry]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| width ×2 |") for line in lines) == 3


def test_figures_are_drawn_from_the_registry(
    registry: str, sweep_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "figures"
    assert (
        main(
            [
                "sweep",
                str(sweep_file),
                "--figure",
                str(folder),
                "--ending",
                "json",
                "--registry",
                registry,
            ]
        )
        == 0
    )
    assert {path.name for path in folder.iterdir()} == {"tiny-fslr.json", "tiny-width.json"}


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (("nothing",), 3, ["'nothing'", "decoder-width"]),
        (("resmlp", "--on", "moon"), 2, ["'moon'", "local, ray, slurm"]),
        (("resmlp", "--on", "slurm", "--cell", "99"), 2, ["'99'"]),
        (("resmlp", "--cell", "third"), 2, ["'third'", "base or a number"]),
        (("resmlp", "--figure", "here", "--ending", "gif"), 2, ["'gif'", "png, svg"]),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    registry: str,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    named: list[str],
) -> None:
    if "slurm" in arguments:
        pytest.importorskip("submitit")
    assert main(["sweep", *arguments, "--registry", registry]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert all(each in line for each in named)


def test_slurm_scripts_are_one_for_the_base_and_an_array_for_the_cells(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("submitit")
    arguments = ["sweep", "decoder-width", "--on", "slurm", "--registry", "grpc://head:50051"]
    assert main([*arguments, "--cell", "base", "--jobs", "4"]) == 0
    base = capsys.readouterr().out
    assert base.startswith("#!/bin/bash\n")
    assert "#SBATCH --cpus-per-task=4" in base
    assert (
        "flerm sweep decoder-width --registry grpc://head:50051 --seeds 3 --jobs 4 --cell base"
        in base
    )
    assert main(arguments) == 0
    array = capsys.readouterr().out
    assert "#SBATCH --array=0-2%3" in array
    assert '--cell "$SLURM_ARRAY_TASK_ID"' in array


def test_presets_are_listed_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "--list"]) == 0
    listed = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert {"resmlp", "decoder-width", "decoder-depth"} <= set(listed)
