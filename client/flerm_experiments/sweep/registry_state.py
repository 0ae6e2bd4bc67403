"""What a registry holds of a sweep. There is no other record: who looks at the registry sees the sweep, and resumes it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from flerm_client.registry.address import address_of
from flerm_client.registry.client import RegistryClient
from flerm_core.records.recording import Recording
from flerm_core.tuning.best_lr import SweepRun
from flerm_experiments.sweep.spec import MEASURED, Sweep
from flerm_experiments.sweep.trials import JOB_TAG, SCALES, Trial, job_of
from flerm_experiments.workloads.base import Scale

_COUNTED = ("completed", "diverged")


@dataclass(frozen=True, slots=True)
class Entry:
    """One finished trial. `loss`: the final one, infinite for a run that diverged. `seconds`: of wall time, from the first
    measurement to the end."""

    trial: Trial
    recording: str
    loss: float
    seconds: float

    def run(self, sweep: Sweep) -> SweepRun:
        """As `flerm_core.tuning.best_lr` takes it."""
        lr = sweep.centre * 2.0**self.trial.place
        finite = math.isfinite(self.loss)
        return SweepRun(
            lr=lr,
            seed=self.trial.seed,
            loss=self.loss if finite else None,
            status="completed" if finite else "diverged",
        )


def finished(sweep: Sweep, registry: str | None) -> dict[Trial, Entry]:
    """The trials of `sweep` that ended, as the registry tells; runs that failed or were interrupted are not among them.

    A trial done twice counts by its newest run. Base recordings made since by more seeds, or for other sweeps of the same kind,
    count too.
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
    return entries(sweep, recordings)


def entries(sweep: Sweep, recordings: Iterable[Recording]) -> dict[Trial, Entry]:
    """The same, of recordings, of each kind the newest first."""
    found: dict[Trial, Entry] = {}
    for recording in recordings:
        if recording.status in _COUNTED:
            for trial in _trials(sweep, recording):
                found.setdefault(trial, _entry(trial, recording))
    return found


def _trials(sweep: Sweep, recording: Recording) -> list[Trial]:
    """The trials of this sweep that `recording` is of, by its key; two where variants of two names train alike."""
    spec = recording.spec
    octaves = math.log2(spec.lr / sweep.centre)
    # An older version began LoRA at another step: not what would be trained now.
    if (
        JOB_TAG not in spec.tags
        or abs(octaves - round(octaves)) > 1e-6
        or spec.estimator.start != 1
    ):
        return []
    scale = Scale(**{name: spec.config[name] for name in SCALES if name in spec.config})
    if spec.role == "base":
        trials = [Trial(None, round(octaves), spec.seed, measured) for measured in MEASURED]
    else:
        trials = [
            Trial(cell, round(octaves), spec.seed) for cell in sweep.cells if cell.scale == scale
        ]
    return [
        trial for trial in trials if job_of(sweep, trial, None).tags[JOB_TAG] == spec.tags[JOB_TAG]
    ]


def _entry(trial: Trial, recording: Recording) -> Entry:
    lost = recording.status == "diverged" or recording.final_loss is None
    ended = recording.finished_at or recording.updated_at
    return Entry(
        trial=trial,
        recording=recording.spec.id,
        loss=math.inf if lost or recording.final_loss is None else recording.final_loss,
        seconds=max((ended - recording.created_at).total_seconds(), 0.0),
    )
