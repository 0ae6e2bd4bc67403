"""One training job in a process of its own. Every executor runs this."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from flerm_experiments.sweep.command_job import CommandJob, run_command
from flerm_experiments.sweep.job_outcome import JobOutcome

if TYPE_CHECKING:
    from flerm_experiments.sweep.trials import AnyJob


def run_job(job: AnyJob) -> JobOutcome:
    """Trains `job`: a command in processes of its own, a workload in this one, with one thread.

    Warnings are not printed, because many trainings share the sweep's terminal. What was measured
    stands in each recording.
    """
    if isinstance(job, CommandJob):
        return run_command(job)
    import torch

    from flerm_experiments.workloads.train_loop import train

    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = train(job)
    return JobOutcome(result.status, result.final_loss, result.seconds)
