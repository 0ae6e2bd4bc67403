"""One trial in a process of its own, on one core: what every place runs."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from flerm_experiments.workloads.train_loop import Job


@dataclass(frozen=True, slots=True)
class Finished:
    """How a job ended: completed or diverged, its final loss, its seconds of wall time."""

    status: str
    loss: float
    seconds: float


def work(job: Job) -> Finished:
    """Trains `job` with one thread. What it warns of is in its recording; a sweep's terminal is not the place."""
    import torch

    from flerm_experiments.workloads.train_loop import train

    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = train(job)
    return Finished(result.status, result.final_loss, result.seconds)
