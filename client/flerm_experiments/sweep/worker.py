"""One training job in a process of its own, on one core. Every executor runs this."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from flerm_experiments.workloads.train_loop import Job


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """How a job ended: status (completed or diverged), final loss, seconds of wall time."""

    status: str
    loss: float
    seconds: float


def run_job(job: Job) -> JobOutcome:
    """Trains `job` with one thread.

    Warnings are not printed, because many trainings share the sweep's terminal. What was measured
    stands in each recording.
    """
    import torch

    from flerm_experiments.workloads.train_loop import train

    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = train(job)
    return JobOutcome(result.status, result.final_loss, result.seconds)
