"""Carries a sweep out: plans, hands jobs to a place, and plans again with each one that ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from statistics import fmean

from flerm_experiments.sweep.executors import Executor, reason
from flerm_experiments.sweep.planner import Needed, plan
from flerm_experiments.sweep.registry_state import finished
from flerm_experiments.sweep.spec import Sweep
from flerm_experiments.sweep.trials import Trial, job_of
from flerm_experiments.sweep.worker import Finished


@dataclass(slots=True)
class SweepProgress:
    """Where a sweep stands. `missing`: trials known to be needed still, those under way included; more may turn out to be.

    `seconds_left`: of wall time, None before any of this run's trials ended.
    """

    done: int = 0
    missing: int = 0
    running: int = 0
    failures: dict[Trial, str] = field(default_factory=dict)
    seconds_left: float | None = None
    last: tuple[Trial, Finished] | None = None


def run(
    sweep: Sweep,
    registry: str | None,
    place: Executor,
    *,
    tell: Callable[[SweepProgress], None] = lambda _: None,
) -> SweepProgress:
    """Trains what the registry does not hold yet of `sweep`; how it stands at the end.

    `tell` is called with every trial that ends. A trial that fails is kept in `failures` with its reason and not tried again by
    this call; what can go on without it goes on. Raises, before anything is trained, what the registry raises when it is first
    asked, and `InvalidInput` for a cell that its workload cannot train.
    """
    for cell in sweep.cells:
        job_of(sweep, Trial(cell, 0, 0), registry)
    losses = {trial: entry.loss for trial, entry in finished(sweep, registry).items()}
    progress = SweepProgress(done=len(losses))
    seconds: dict[Trial, float] = {}
    under_way: dict[Future[Finished], Trial] = {}
    try:
        while True:
            open_ = [each for each in plan(sweep, losses) if each.trial not in progress.failures]
            _start(open_, under_way, sweep, registry, place)
            if not under_way:
                return progress
            progress.missing, progress.running = len(open_), len(under_way)
            progress.seconds_left = _left(open_, seconds, place.slots)
            tell(progress)
            ended, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in ended:
                trial = under_way.pop(future)
                error = future.exception()
                if error is not None:
                    progress.failures[trial] = reason(error)
                    continue
                result = future.result()
                losses[trial] = (
                    result.loss
                    if result.status == "completed" and math.isfinite(result.loss)
                    else math.inf
                )
                seconds[trial] = result.seconds
                progress.done += 1
                progress.last = (trial, result)
    finally:
        place.close()


def _start(
    missing: list[Needed],
    under_way: dict[Future[Finished], Trial],
    sweep: Sweep,
    registry: str | None,
    place: Executor,
) -> None:
    busy = set(under_way.values())
    for needed in missing:
        if len(under_way) >= place.slots:
            return
        if needed.trial not in busy and not needed.after:
            under_way[place.submit(job_of(sweep, needed.trial, registry))] = needed.trial


def _left(missing: list[Needed], seconds: dict[Trial, float], slots: int) -> float | None:
    """By what trials of the same cell took, else by all of this call. Those under way count as not begun."""
    if not seconds:
        return None
    cells: dict[object, list[float]] = {}
    for trial, took in seconds.items():
        cells.setdefault(trial.cell, []).append(took)
    overall = fmean(seconds.values())
    return sum(fmean(cells.get(needed.trial.cell, [overall])) for needed in missing) / slots
