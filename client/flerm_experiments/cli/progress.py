"""The lines on standard error with which a sweep reports its progress, and its end by SIGTERM."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING

from flerm_experiments.sweep.job_outcome import duration

if TYPE_CHECKING:
    from flerm_experiments.sweep.runner import SweepProgress
    from flerm_experiments.sweep.spec import Sweep
    from flerm_experiments.sweep.trials import Trial


def end_with_children() -> None:
    """Treats SIGTERM, which clusters send, like Ctrl-C: the running trainings are ended too.

    A second SIGTERM is ignored, because it would interrupt the end of the trainings. Some senders,
    such as timeout(1), send the signal twice.
    """

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)


def print_progress(sweep: Sweep, progress: SweepProgress) -> None:
    """Prints the outcome of the training that ended last, and how many trainings are left."""
    left = (
        "" if progress.seconds_left is None else f", about {duration(progress.seconds_left)} left"
    )
    last = ""
    if progress.last is not None:
        trial, result = progress.last
        outcome = f"loss {result.loss:.4f}" if result.status == "completed" else result.status
        last = f"{trial_name(sweep, trial)}: {outcome}, {result.seconds:.0f} s; "
    failed = f", {len(progress.failures)} failed" if progress.failures else ""
    sys.stderr.write(
        f"{last}{progress.done} done{failed}, {progress.missing} or more to go{left}\n"
    )


def trial_name(sweep: Sweep, trial: Trial) -> str:
    """A trial's name for people: its scale, variant, learning rate and seed."""
    cell = "base" if trial.cell is None else trial.cell.label
    measured = f", {trial.base_measurement}" if trial.base_measurement else ""
    return f"{cell}{measured}, lr {sweep.lr_at(trial.lr_index):.4g}, seed {trial.seed}"
