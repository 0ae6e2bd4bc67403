"""What a registry holds of a sweep.

A sweep keeps no other state, so any process that reads the registry can continue the sweep.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from flerm_client.registry.address import address_of
from flerm_client.registry.client import RegistryClient
from flerm_core.records.recording import Recording
from flerm_core.tuning.best_lr import SweepRun
from flerm_experiments.sweep.command_job import JOB_TAG
from flerm_experiments.sweep.early_stop import is_over
from flerm_experiments.sweep.spec import BASE_MEASUREMENTS, Sweep
from flerm_experiments.sweep.trials import SCALE_FIELDS, Trial, job_of
from flerm_experiments.workloads.base import Scale


@dataclass(frozen=True, slots=True)
class FinishedTrial:
    """A trial that ended, and its recording.

    recording: its id.
    loss: the final loss, infinite for a run that diverged.
    seconds: wall time from the first measurement to the end.
    """

    trial: Trial
    recording: str
    loss: float
    seconds: float

    def sweep_run(self, sweep: Sweep) -> SweepRun:
        """This trial as a point of a loss curve of `flerm_core.tuning.best_lr`."""
        finite = math.isfinite(self.loss)
        return SweepRun(
            lr=sweep.lr_at(self.trial.lr_index),
            seed=self.trial.seed,
            loss=self.loss if finite else None,
            status="completed" if finite else "diverged",
        )


def finished_trials(sweep: Sweep, registry: str | None) -> dict[Trial, FinishedTrial]:
    """The trials of `sweep` that the registry holds as completed, diverged or stopped early.

    Failed runs and others that were interrupted are not among them. Of a trial that was run twice
    the newest run counts. Base recordings that another sweep of the same kind made, or more seeds
    of them, count too.
    """
    folder = address_of(registry).folder
    if folder is not None and not folder.exists():  # the first recording makes it
        return {}
    lengths = {1, *(cell.steps for cell in sweep.cells)}
    with RegistryClient(registry, patience=0.0) as client:
        recordings = [
            each
            for times in lengths
            for each in client.recordings(sweep.family_name, tags=sweep.tags(times))
        ]
    return finished_among(sweep, recordings)


def finished_among(sweep: Sweep, recordings: Iterable[Recording]) -> dict[Trial, FinishedTrial]:
    """The trials of `sweep` that `recordings` has. Recordings of equal length come newest first."""
    found: dict[Trial, FinishedTrial] = {}
    for recording in recordings:
        if is_over(recording):
            for trial in _trials_of(sweep, recording):
                found.setdefault(trial, _finished_trial(trial, recording))
    return found


def _trials_of(sweep: Sweep, recording: Recording) -> list[Trial]:
    """The trials whose job key `recording` carries: two where two variants train alike."""
    spec = recording.spec
    index = sweep.index_of(spec.lr)
    if JOB_TAG not in spec.tags or index is None:
        return []
    if sweep.command is not None:
        # Without a loss the run is still to be judged.
        if recording.status == "completed" and recording.final_loss is None:
            return []
        trials = [Trial(cell, index, spec.seed) for cell in (None, *sweep.cells)]
    # Older recordings of LoRA begin at a later step, which is not how they would be trained now.
    elif spec.estimator.start != 1:
        return []
    elif spec.role == "base":
        trials = [Trial(None, index, spec.seed, how) for how in BASE_MEASUREMENTS]
    else:
        scale = Scale(**{name: spec.config[name] for name in SCALE_FIELDS if name in spec.config})
        trials = [Trial(cell, index, spec.seed) for cell in sweep.cells if cell.scale == scale]
    return [
        trial for trial in trials if job_of(sweep, trial, None).tags[JOB_TAG] == spec.tags[JOB_TAG]
    ]


def _finished_trial(trial: Trial, recording: Recording) -> FinishedTrial:
    loss = recording.final_loss
    ended = recording.finished_at or recording.updated_at
    return FinishedTrial(
        trial=trial,
        recording=recording.spec.id,
        loss=loss if loss is not None and recording.status == "completed" else math.inf,
        seconds=max((ended - recording.created_at).total_seconds(), 0.0),
    )
