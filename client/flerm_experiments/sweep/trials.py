"""Trials: from a cell, a learning rate and a seed to the training job and its key.

The job's key is a tag of the job's recording. The tag shows whether the registry has the job's run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import Any

from flerm_client.training.run_instructions import RunInstructions
from flerm_core.matching.depth_rules import DEFAULT_DEPTH
from flerm_core.records.recording import EstimatorSettings, content_digest
from flerm_experiments.sweep.command import Command, CommandScale
from flerm_experiments.sweep.command_job import JOB_TAG, CommandJob
from flerm_experiments.sweep.spec import BASE_MEASUREMENTS, PERIODIC, VARIANTS, Cell, Sweep
from flerm_experiments.workloads.base import Scale
from flerm_experiments.workloads.train_loop import Job

SCALE_FIELDS = frozenset(each.name for each in fields(Scale))
# Where and under which name a recording is kept, and what follows from the other fields.
_NOT_IN_KEY = {"registry", "variant", "tags", "source_tags"}
_DEFAULT_EVERY = 100  # that of a `Job`


@dataclass(frozen=True, slots=True)
class Trial:
    """One training of a sweep.

    cell: None for the base.
    lr_index: as `Sweep.lr_at` takes it.
    base_measurement: how the base is measured, of `BASE_MEASUREMENTS`; empty for a cell.
    """

    cell: Cell | None
    lr_index: int
    seed: int
    base_measurement: str = ""


AnyJob = Job | CommandJob
"""What an executor runs."""


def job_of(sweep: Sweep, trial: Trial, registry: str | None) -> AnyJob:
    """The job that trains `trial`.

    Its recording gets the sweep's tags, and the job's key as a tag.
    """
    if sweep.command is not None:
        return _command_job(sweep, sweep.command, trial, registry)
    return _workload_job(sweep, trial, registry)


def _command_job(sweep: Sweep, command: Command, trial: Trial, registry: str | None) -> CommandJob:
    cell = trial.cell
    scale = command.base_scale if cell is None else cell.scale
    assert isinstance(scale, CommandScale)
    matches = cell is not None and cell.matches
    lr, values = sweep.lr_at(trial.lr_index), dict(scale.values)
    # The targets of a matched run follow from the base's recordings.
    base = {"base": sweep.tags(), "base_seeds": sweep.base_seeds} if matches else {}
    key = content_digest(
        {"command": command.base_digest, "values": values, "lr": lr, "seed": trial.seed, **base}
    )[:32]
    label = "base" if cell is None else cell.label
    name = re.sub(r"[^\w.-]+", "-", f"{label}-lr{lr:.3g}-seed{trial.seed}-{key[:8]}")
    folder = command.folder / name
    placeholders = {"lr": repr(lr), "seed": str(trial.seed), "folder": str(folder)}
    placeholders |= {key: str(value) for key, value in values.items()}
    return CommandJob(
        key=key,
        words=command.words(placeholders),
        folder=folder,
        directory=command.directory,
        registry=registry,
        instructions=RunInstructions(
            mode="match" if matches else "record",
            family=sweep.family_name,
            lr=lr,
            seed=trial.seed,
            role="base" if cell is None else "scaled",
            variant="plain" if cell is None else cell.variant,
            tags={**sweep.tags(), JOB_TAG: key},
            source_tags=sweep.tags() if matches else {},
            config=values,
            judged_later=command.objective is not None,
        ),
        objective=command.objective,
        limits=command.limits,
    )


def _workload_job(sweep: Sweep, trial: Trial, registry: str | None) -> Job:
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
        "hold_norms": sweep.hold_norms,
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
    if cell.matches and "depth" in cell.scale.differing:
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
