"""Small sweeps, an executor in this process, and the names in the paper's files."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace

from flerm_core.errors import MeasurementError
from flerm_experiments.sweep.executors import Executor
from flerm_experiments.sweep.job_outcome import JobOutcome
from flerm_experiments.sweep.spec import Cell, Sweep
from flerm_experiments.sweep.worker import run_job
from flerm_experiments.workloads import Scale
from flerm_experiments.workloads.train_loop import Job

PAPER_NAMES = ("0.weight", "0.bias", "2.weight", "2.bias")
"""The tensors of the paper's files: those of a `Sequential` of two linear layers."""

WIDE = Scale(width=2)


SWEEP = Sweep(
    name="demo",
    workload="resmlp",
    initial_lr=2.0**-7,
    steps=4,
    base_seeds=2,
    cells=(Cell(scale=WIDE), Cell(scale=WIDE, variant="matched"), Cell(scale=WIDE, variant="mup")),
)


LONGER_VARIANTS = ("plain", "matched", "matched-periodic", "matched-fraction")


LONGER = replace(
    SWEEP,
    every=2,
    cells=tuple(Cell(scale=WIDE, variant=variant, steps=2) for variant in LONGER_VARIANTS),
)


class InProcessExecutor(Executor):
    """Runs each job at once in this process. Jobs of the variant `failing` fail."""

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
