"""Tunes the base in several dimensions, its learning rate among them, by a sampler of Optuna.

The registry is the only state. A point of the search is a run of the base with seed 0 and with the
point's values in its configuration, so a search that was stopped goes on where it was, and a point
that lies on the curve of the best values is not trained again for the curve.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from flerm_client.registry.address import address_of
from flerm_client.registry.client import RegistryClient
from flerm_core.errors import FlermError
from flerm_experiments.sweep.executors import Executor, failure_reason
from flerm_experiments.sweep.job_outcome import JobOutcome
from flerm_experiments.sweep.registry_state import FinishedTrial, finished_among
from flerm_experiments.sweep.search_space import Dimension, SearchSpace, Value
from flerm_experiments.sweep.spec import Sweep
from flerm_experiments.sweep.trials import Trial, job_of

_OCTAVES = 4  # from the sweep's initial rate, where it has no bounds
_ASKS = 200  # suggestions that were trained already, before the space counts as exhausted
_LR = "lr"  # no dimension has this name


@dataclass(frozen=True, slots=True)
class Point:
    """One run of the search.

    values: pairs of dimension and value, in the order of the sweep file.
    lr_index: as `Sweep.lr_at` takes it.
    """

    values: tuple[tuple[str, Value], ...]
    lr_index: int

    @property
    def by_name(self) -> dict[str, Value]:
        """Dimension to value."""
        return dict(self.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchAnswer:
    """What a search found.

    sweep: whose base was searched.
    points: each point's run, whose loss is infinite where it diverged or was stopped early.
    failures: point to the reason, for runs of this call that failed.
    """

    sweep: Sweep
    points: Mapping[Point, FinishedTrial]
    failures: Mapping[Point, str]

    @property
    def ranked(self) -> list[Point]:
        """The points, the lowest loss first."""
        return sorted(self.points, key=lambda each: self.points[each].loss)

    @property
    def best(self) -> Point:
        """The point of the lowest loss."""
        return self.ranked[0]

    @property
    def sweep_of_best(self) -> Sweep:
        """The sweep with the best point's values for base and target, which begins at its rate."""
        found = _at(self.sweep, self.best)
        if found.rates:
            return found
        return replace(found, initial_lr=self.sweep.lr_at(self.best.lr_index))


def search_base(
    sweep: Sweep,
    space: SearchSpace,
    registry: str | None,
    executor: Executor,
    say: Callable[[str], None] = lambda _: None,
) -> SearchAnswer:
    """Trains points of `space` until there are as many as it asks for, those of before included.

    say: gets a line for each point that ended.

    A run that fails counts as a point in this call, and another call tries it again. Raises
    `FlermError` where no run ended with a finite loss.
    """
    before = _points_in(sweep, space, registry)
    losses = {point: each.loss for point, each in before.items()}
    failures: dict[Point, str] = {}
    under_way: dict[Future[JobOutcome], Point] = {}
    try:
        while True:
            while len(under_way) < executor.slots:
                count = len(losses) + len(failures) + len(under_way)
                tried = losses | dict.fromkeys(failures, math.inf)
                point = None
                if count < space.trials:
                    point = _suggested(sweep, space, tried, list(under_way.values()))
                if point is None:
                    break
                job = job_of(_at(sweep, point), Trial(None, point.lr_index, 0), registry)
                under_way[executor.submit(job)] = point
            if not under_way:
                break
            ended, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in ended:
                point = under_way.pop(future)
                error = future.exception()
                if error is not None:
                    failures[point] = failure_reason(error)
                    outcome = f"failed: {failures[point]}"
                else:
                    result = future.result()
                    finite = result.status == "completed" and math.isfinite(result.loss)
                    losses[point] = result.loss if finite else math.inf
                    outcome = f"loss {result.loss:.4f}" if finite else result.status
                number = len(losses) + len(failures)
                say(f"search {number} of {space.trials}: {label(sweep, point)}: {outcome}")
    finally:
        executor.close()
    if not any(map(math.isfinite, losses.values())):
        why = next(iter(failures.values()), "all diverged")
        raise FlermError(
            f"none of {len(losses) + len(failures)} runs of the search ended with a finite loss: "
            f"{why}"
        )
    points = _points_in(sweep, space, registry)
    return SearchAnswer(sweep=sweep, points=points, failures=failures)


def label(sweep: Sweep, point: Point) -> str:
    """The rate and the values of a point, for people."""
    return f"lr {sweep.lr_at(point.lr_index):.4g}, {values_text(point)}"


def values_text(point: Point) -> str:
    """The values of a point, for people."""
    return ", ".join(f"{name} {short(value)}" for name, value in point.values)


def short(value: Value) -> str:
    """A value for people."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _at(sweep: Sweep, point: Point) -> Sweep:
    """`sweep` with the values of `point`, without cells: these are of other values."""
    assert sweep.command is not None
    return replace(sweep, command=sweep.command.with_values(point.by_name), cells=())


def _points_in(
    sweep: Sweep, space: SearchSpace, registry: str | None
) -> dict[Point, FinishedTrial]:
    """The points whose runs the registry holds."""
    folder = address_of(registry).folder
    if folder is not None and not folder.exists():  # the first recording makes it
        return {}
    with RegistryClient(registry, patience=0.0) as client:
        recordings = list(client.recordings(sweep.family_name, role="base"))
    found: dict[Point, FinishedTrial] = {}
    for recording in recordings:
        values = {
            each.name: each.read(recording.spec.config.get(each.name)) for each in space.dimensions
        }
        known = tuple((name, value) for name, value in values.items() if value is not None)
        if len(known) < len(values):
            continue
        for trial, finished in finished_among(_at(sweep, Point(known, 0)), [recording]).items():
            if trial.cell is None and trial.seed == 0:
                found.setdefault(Point(known, trial.lr_index), finished)
    return found


def _suggested(
    sweep: Sweep, space: SearchSpace, tried: Mapping[Point, float], running: list[Point]
) -> Point | None:
    """The point to train next; None where the space is exhausted.

    The sampler is a tree-structured Parzen estimator. It is made anew from what is known, so that a
    search which goes on later suggests what it would have suggested.
    """
    optuna = import_module("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {_LR: _rate_distribution(optuna, sweep)} | {
        each.name: _distribution(optuna, each) for each in space.dimensions
    }
    sampler = optuna.samplers.TPESampler(seed=len(tried) + len(running), constant_liar=True)
    study = optuna.create_study(sampler=sampler)

    def add(point: Point, **outcome: Any) -> None:
        params = {_LR: point.lr_index, **point.by_name}
        inside = {name: distributions[name] for name in params}
        # A rate that another sweep trained may lie out of the bounds.
        if distributions[_LR].low <= point.lr_index <= distributions[_LR].high:
            study.add_trial(
                optuna.trial.create_trial(params=params, distributions=inside, **outcome)
            )

    for point in sorted(tried, key=lambda each: (each.lr_index, repr(each.values))):
        add(point, value=tried[point])
    for point in running:
        add(point, state=optuna.trial.TrialState.RUNNING)
    for _ in range(_ASKS):
        trial = study.ask(distributions)
        values = tuple((each.name, trial.params[each.name]) for each in space.dimensions)
        point = Point(values, trial.params[_LR])
        if point not in tried and point not in running:
            return point
        study.tell(trial, tried.get(point, math.inf))
    return None


def _rate_distribution(optuna: Any, sweep: Sweep) -> Any:
    allowed = sweep.allowed_indices
    low, high = allowed.start, allowed.stop - 1
    if not sweep.rates:
        low, high = max(low, -_OCTAVES), min(high, _OCTAVES)
    return optuna.distributions.IntDistribution(low, high)


def _distribution(optuna: Any, dimension: Dimension) -> Any:
    if dimension.values:
        return optuna.distributions.CategoricalDistribution(dimension.values)
    if dimension.is_whole:
        return optuna.distributions.IntDistribution(
            int(dimension.low), int(dimension.high), log=dimension.log
        )
    return optuna.distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.log)
