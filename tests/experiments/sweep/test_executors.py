"""Executors: as many jobs as cores, a dead process costs one job, and a Ray cluster gives the same
losses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flerm_core.errors import InvalidInput
from flerm_experiments.sweep.executors import LocalExecutor, available_cores
from flerm_experiments.sweep.registry_state import finished_trials
from flerm_experiments.sweep.runner import run_sweep
from flerm_experiments.workloads.train_loop import Job
from tests.experiments.sweeps import SWEEP


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
