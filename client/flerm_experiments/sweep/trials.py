"""Trials: from a cell, a learning rate and a seed to the training job and its key.

The job's key is a tag of its recording. By the key the registry tells whether a job was done.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from flerm_core.matching.depth_rules import DEFAULT_DEPTH
from flerm_core.records.recording import EstimatorSettings, content_digest
from flerm_experiments.sweep.spec import BASE_MEASUREMENTS, PERIODIC, VARIANTS, Cell, Sweep
from flerm_experiments.workloads.base import Scale
from flerm_experiments.workloads.train_loop import Job

JOB_TAG = "job"
"""The tag that holds a job's key."""
SCALE_FIELDS = frozenset(each.name for each in fields(Scale))
# Where and under which name a recording is kept, and what follows from the other fields.
_NOT_IN_KEY = {"registry", "variant", "tags", "source_tags"}
_DEFAULT_EVERY = 100  # that of a `Job`


@dataclass(frozen=True, slots=True)
class Trial:
    """One training of a sweep.

    cell: None for the base. lr_index: octaves from the sweep's initial learning rate.
    base_measurement: how the base is measured, of `BASE_MEASUREMENTS`; empty for a cell.
    """

    cell: Cell | None
    lr_index: int
    seed: int
    base_measurement: str = ""


def job_of(sweep: Sweep, trial: Trial, registry: str | None) -> Job:
    """The job that trains `trial`. Its recording gets the sweep's tags and the job's key as
    tags."""
    cell = trial.cell or Cell()
    variant = VARIANTS[cell.variant]
    settings: dict[str, Any] = {
        "workload": sweep.workload,
        "lr": sweep.lr_at(trial.lr_index),
        "scale": cell.scale,
        "steps": sweep.steps * cell.steps,
        "seed": trial.seed,
        "optimizer": sweep.optimizer,
        "schedule": sweep.schedule,
        "mode": "record",
        "family": sweep.family_name,
        "registry": registry,
        "role": "base" if trial.cell is None else "scaled",
        "variant": cell.variant,
        "source_tags": sweep.tags() if cell.matches else {},
        **BASE_MEASUREMENTS[trial.base_measurement],
        **variant,
    }
    if cell.variant in PERIODIC:
        # A longer run matches no more often than the base was measured, so that variants of one
        # length differ in their target clock alone.
        settings["every"] = sweep.every * cell.steps
    elif variant.get("mode") != "match" and sweep.every != _DEFAULT_EVERY:
        settings["every"] = sweep.every
    if cell.matches and cell.scale.depth != 1:
        # By name, so that under another default rule the run counts as another one.
        settings.setdefault("depth_rule", DEFAULT_DEPTH)
    job = Job(**settings)
    # The targets of a matched run follow from the base's seeds and length, so the key holds these.
    base: dict[str, Any] = {"base_seeds": sweep.base_seeds} if cell.matches else {}
    if cell.matches and cell.steps != 1:
        base["base_steps"] = sweep.steps
    # The estimator by name, because the base may have been recorded by several.
    estimator = job.estimator or EstimatorSettings().name
    return replace(
        job, estimator=estimator, tags={**sweep.tags(cell.steps), JOB_TAG: job_key(job, **base)}
    )


def job_key(job: Job, **more: Any) -> str:
    """A digest of everything that decides how `job` runs, and of `more`.

    Fields at their defaults are left out, so a field that is added to `Job` later leaves the keys
    of stored recordings as they are.
    """
    plain = Job(workload=job.workload, lr=job.lr)
    differing = {
        each.name: _plain(getattr(job, each.name))
        for each in fields(Job)
        if each.name not in _NOT_IN_KEY and getattr(job, each.name) != getattr(plain, each.name)
    }
    return content_digest({"workload": job.workload, "lr": job.lr, **differing, **more})[:32]


def _plain(value: Any) -> Any:
    if not isinstance(value, Scale):
        return value
    base = Scale()
    return {
        each: getattr(value, each)
        for each in sorted(SCALE_FIELDS)
        if getattr(value, each) != getattr(base, each)
    }
