"""Carries a sweep out: plans, hands jobs to an executor, and plans again when one of them ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from statistics import fmean

from flerm_experiments.sweep.executors import Executor, failure_reason
from flerm_experiments.sweep.job_outcome import JobOutcome
from flerm_experiments.sweep.planner import PlannedTrial, plan
from flerm_experiments.sweep.registry_state import finished_trials
from flerm_experiments.sweep.spec import Sweep
from flerm_experiments.sweep.trials import Trial, job_of


@dataclass(slots=True)
class SweepProgress:
    """How far a sweep is.

    done: trials that ended, in this call or before.
    missing: trials known to be needed still, those under way included; more may turn out to be.
    running: those under way.
    failures: trial to the reason.
    seconds_left: wall time, None until a trial of this call has ended.
    last: the trial that ended last.
    """

    done: int = 0
    missing: int = 0
    running: int = 0
    failures: dict[Trial, str] = field(default_factory=dict)
    seconds_left: float | None = None
    last: tuple[Trial, JobOutcome] | None = None


def run_sweep(
    sweep: Sweep,
    registry: str | None,
    executor: Executor,
    *,
    on_progress: Callable[[SweepProgress], None] = lambda _: None,
) -> SweepProgress:
    """Trains what the registry does not hold yet of `sweep`, and returns how far the sweep is then.

    `on_progress` is called before the first trial and whenever one has ended. A trial that fails is
    kept in `failures` and not tried again by this call; trials that do not need it go on. Raises
    before anything is trained: `InvalidInput` for a cell that its workload cannot train, and what
    the registry raises when it is asked.
    """
    for cell in sweep.cells:
        job_of(sweep, Trial(cell, 0, 0), registry)
    losses = {trial: each.loss for trial, each in finished_trials(sweep, registry).items()}
    progress = SweepProgress(done=len(losses))
    seconds: dict[Trial, float] = {}
    under_way: dict[Future[JobOutcome], Trial] = {}
    try:
        while True:
            missing = [each for each in plan(sweep, losses) if each.trial not in progress.failures]
            _start_ready(missing, under_way, sweep, registry, executor)
            if not under_way:
                return progress
            progress.missing, progress.running = len(missing), len(under_way)
            progress.seconds_left = _seconds_left(missing, seconds, executor.slots)
            on_progress(progress)
            ended, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in ended:
                trial = under_way.pop(future)
                error = future.exception()
                if error is not None:
                    progress.failures[trial] = failure_reason(error)
                    continue
                outcome = future.result()
                finite = outcome.status == "completed" and math.isfinite(outcome.loss)
                losses[trial] = outcome.loss if finite else math.inf
                seconds[trial] = outcome.seconds
                progress.done += 1
                progress.last = (trial, outcome)
    finally:
        executor.close()


def _start_ready(
    missing: list[PlannedTrial],
    under_way: dict[Future[JobOutcome], Trial],
    sweep: Sweep,
    registry: str | None,
    executor: Executor,
) -> None:
    """Submits trials whose predecessors are done, until every slot is taken."""
    busy = set(under_way.values())
    for planned in missing:
        if len(under_way) >= executor.slots:
            return
        if planned.trial not in busy and not planned.waits_for:
            under_way[executor.submit(job_of(sweep, planned.trial, registry))] = planned.trial


def _seconds_left(
    missing: list[PlannedTrial], seconds: dict[Trial, float], slots: int
) -> float | None:
    """An estimate from the mean time of the same cell's trials, else of all trials of this call.

    Trials under way count as if they had not begun.
    """
    if not seconds:
        return None
    by_cell: dict[object, list[float]] = {}
    for trial, took in seconds.items():
        by_cell.setdefault(trial.cell, []).append(took)
    overall = fmean(seconds.values())
    return sum(fmean(by_cell.get(each.trial.cell, [overall])) for each in missing) / slots
