"""From a cell, a rate and a seed to the training job, and the key by which the registry is asked whether it was done."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from flerm_core.matching.depth_rules import DEFAULT_DEPTH
from flerm_core.records.recording import EstimatorSettings, content_digest
from flerm_experiments.sweep.spec import MEASURED, PERIODIC, VARIANTS, Cell, Sweep
from flerm_experiments.workloads.base import Scale
from flerm_experiments.workloads.train_loop import Job

JOB_TAG = "job"
"""The tag that carries a job's key."""
SCALES = frozenset(each.name for each in fields(Scale))
_UNKEYED = {
    "registry",
    "variant",
    "tags",
    "source_tags",
}  # where and under which name a run is kept, what follows from the rest
_EVERY = 100  # a job's own, between measurements


@dataclass(frozen=True, slots=True)
class Trial:
    """One training of a sweep: a curve, a place on its lattice of rates, a seed. Cell None: the base, `measured` so."""

    cell: Cell | None
    place: int
    seed: int
    measured: str = ""


def job_of(sweep: Sweep, trial: Trial, registry: str | None) -> Job:
    """The job that trains `trial`; its recording carries the sweep's tags and the job's key."""
    cell = trial.cell or Cell()
    matching = VARIANTS[cell.variant].get("mode") == "match"
    fields_: dict[str, Any] = {
        "workload": sweep.workload,
        "lr": sweep.centre * 2.0**trial.place,
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
        **MEASURED[trial.measured],
        **VARIANTS[cell.variant],
    }
    if (
        cell.variant in PERIODIC
    ):  # as often in a longer run, so that such runs differ in their clock alone
        fields_["every"] = sweep.every * cell.steps
    elif not matching and sweep.every != _EVERY:
        fields_["every"] = sweep.every
    if (
        cell.matches and cell.scale.depth != 1
    ):  # by name, so that another default another day is another run
        fields_ = {"depth_rule": DEFAULT_DEPTH, **fields_}
    job = Job(**fields_)
    # Other targets, another run: a matched one is known by the base that its targets are of, too.
    of: dict[str, Any] = {"base_seeds": sweep.base_seeds} if cell.matches else {}
    if cell.matches and cell.steps != 1:
        of["base_steps"] = sweep.steps
    # The estimator by name: the base may be recorded by several.
    estimator = job.estimator or EstimatorSettings().name
    return replace(
        job, estimator=estimator, tags={**sweep.tags(cell.steps), JOB_TAG: key_of(job, **of)}
    )


def key_of(job: Job, **more: Any) -> str:
    """A digest of all that decides how `job` runs. Fields at their default do not count: new ones leave old keys alone."""
    plain = Job(workload=job.workload, lr=job.lr)
    differing = {
        each.name: _plain(getattr(job, each.name))
        for each in fields(Job)
        if each.name not in _UNKEYED and getattr(job, each.name) != getattr(plain, each.name)
    }
    return content_digest({"workload": job.workload, "lr": job.lr, **differing, **more})[:32]


def _plain(value: Any) -> Any:
    if not isinstance(value, Scale):
        return value
    base = Scale()
    return {
        each: getattr(value, each)
        for each in sorted(SCALES)
        if getattr(value, each) != getattr(base, each)
    }
