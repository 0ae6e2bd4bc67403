"""Tunes a user's small model and trains the big one at the rate found, matched to the small one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from flerm_client.registry.client import RegistryClient
from flerm_core.errors import FlermError, InvalidInput
from flerm_core.tuning.optimum_shift import Interval, optimum_interval
from flerm_experiments.sweep.command import Command
from flerm_experiments.sweep.command_job import CommandJob, dry_run
from flerm_experiments.sweep.executors import Executor, failure_reason
from flerm_experiments.sweep.planner import base_best_index
from flerm_experiments.sweep.registry_state import FinishedTrial, finished_trials
from flerm_experiments.sweep.results import CurveRow, curve_rows
from flerm_experiments.sweep.runner import SweepProgress, run_sweep
from flerm_experiments.sweep.sampler_search import SearchAnswer, search_base
from flerm_experiments.sweep.spec import Cell, Sweep
from flerm_experiments.sweep.trials import Trial, job_of

_REPORT = re.compile(r"^\d+ tensors match .*", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseAnswer:
    """What the base's sweep says.

    lr: the best of the rates that were trained.
    row: its curve.
    interval: of the optimum, a learning rate, over seeds.
    finished: the base's trainings.
    searched: what was tuned besides the rate; None: nothing.
    """

    sweep: Sweep
    lr: float
    row: CurveRow
    interval: Interval
    finished: Mapping[Trial, FinishedTrial]
    searched: SearchAnswer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedRun:
    """The big run, and what led to it.

    dry_run: the text of the dry run.
    big: the matched run's trial.
    multipliers: m_ℓ by tensor.
    shapes: of the tensors.
    sources: the base recordings behind the targets.
    """

    base: BaseAnswer
    dry_run: str
    big: FinishedTrial
    multipliers: Mapping[str, float]
    shapes: Mapping[str, tuple[int, ...]]
    sources: tuple[str, ...]


def command_of(sweep: Sweep) -> Command:
    """The sweep's command. Raises `InvalidInput` for a sweep of a built-in workload."""
    if sweep.command is None:
        raise InvalidInput(
            f"sweep {sweep.name!r} trains the built-in workload {sweep.workload}, but tune needs a "
            "command of your own: see flerm init; flerm sweep trains workloads"
        )
    return sweep.command


def sweep_base(
    sweep: Sweep,
    registry: str | None,
    new_executor: Callable[[], Executor],
    on_progress: Callable[[SweepProgress], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> BaseAnswer:
    """Searches what the sweep tunes besides the rate, then trains what is missing of the curve.

    say: gets a line for each point of the search.

    The sweep of the answer has the values that were found. Raises `FlermError` where trainings
    failed.
    """
    command = command_of(sweep)
    searched = None
    if command.search is not None:
        searched = search_base(sweep, command.search, registry, new_executor(), say)
        sweep = searched.sweep_of_best
    base = sweep.part("base")
    progress = run_sweep(base, registry, new_executor(), on_progress=on_progress)
    if progress.failures:
        trial, why = next(iter(progress.failures.items()))
        raise FlermError(
            f"{len(progress.failures)} trainings of the base failed, the first at lr "
            f"{sweep.lr_at(trial.lr_index):g}, seed {trial.seed}: {why}; the same command tries "
            "them again and nothing else"
        )
    finished = finished_trials(base, registry)
    losses = {trial: each.loss for trial, each in finished.items()}
    (row,) = curve_rows(base, finished)
    runs = [each.sweep_run(base) for each in finished.values() if each.trial.seed < row.seeds]
    return BaseAnswer(
        sweep=sweep,
        lr=sweep.lr_at(base_best_index(base, losses)),
        row=row,
        interval=optimum_interval(runs),
        finished=finished,
        searched=searched,
    )


def train_target(
    answer: BaseAnswer,
    registry: str | None,
    executor: Executor,
    say: Callable[[str], None] = lambda _: None,
) -> TunedRun:
    """Dry-runs the match on the big model, then trains it, unless the registry holds it.

    say: gets the dry run's text before the training begins.

    Raises `FlermError` where one of the two fails.
    """
    sweep, command = answer.sweep, command_of(answer.sweep)
    cell = Cell(scale=command.target_scale, variant="matched")
    whole = replace(sweep, cells=(cell,))
    index = sweep.index_of(answer.lr)
    assert index is not None, "the best rate is one that was trained"
    trial = Trial(cell, index, 0)
    job = job_of(whole, trial, registry)
    assert isinstance(job, CommandJob)
    text = _only_report(dry_run(job))
    say(text)
    future = executor.submit(job)
    try:
        future.result()
    except FlermError as error:
        raise FlermError(f"the big run failed: {failure_reason(error)}") from error
    finally:
        executor.close()
    big = finished_trials(whole, registry)[trial]
    with RegistryClient(registry) as client:
        recording = client.recording(big.recording)
        vectors = client.auxiliary(big.recording).vectors
    parameters = recording.spec.parameters
    last = vectors["multiplier"][-1]
    # Depth groups, whose names have a star, have no multiplier of their own.
    found = {name: float(m) for name, m in zip(parameters.names, last, strict=True) if m == m}
    return TunedRun(
        base=answer,
        dry_run=text,
        big=big,
        multipliers=found,
        shapes=dict(zip(parameters.names, parameters.shapes, strict=True)),
        sources=recording.spec.targets_sources,
    )


def _only_report(output: str) -> str:
    """The report of the match, without what the script printed before it."""
    found = list(_REPORT.finditer(output))
    return output[found[-1].start() :].strip() if found else output.strip()
