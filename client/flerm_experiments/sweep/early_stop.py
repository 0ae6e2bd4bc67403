"""Runs at hopeless learning rates are stopped early, by a pruner of Optuna."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, util

from flerm_core.errors import Unsupported
from flerm_core.records.recording import Recording
from flerm_core.trajectory import Trajectory

STOPPED = "stopped early: "
"""How the remark begins on a recording that was stopped."""


@dataclass(frozen=True, slots=True)
class Losses:
    """Losses by optimiser step: of the run under way, and of completed runs of its curve."""

    mine: Mapping[int, float]
    others: Sequence[Mapping[int, float]]


def require_optuna(what: str) -> None:
    """Raises `Unsupported` where Optuna is not installed. The message says that `what` needs it."""
    if util.find_spec("optuna") is None:
        raise Unsupported(f"{what} needs the package optuna: pip install 'flerm[optuna]'")


def losses_by_step(rows: Trajectory) -> dict[int, float]:
    """The losses of a recording's rows that are finite."""
    pairs = zip(rows.steps.tolist(), rows.losses.tolist(), strict=True)
    return {step: loss for step, loss in pairs if math.isfinite(loss)}


def reason_to_stop(losses: Losses) -> str:
    """Why the run under way is hopeless; an empty text where it is to go on.

    Optuna's median pruner says so: its best loss is above the median of at least two completed runs
    at the same measurement. The first measurement, of an untrained model, says nothing.
    """
    if len(losses.mine) < 2 or not losses.others:
        return ""
    optuna = import_module("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=1)
    study = optuna.create_study(pruner=pruner)
    for each in losses.others:
        if each:
            by_row = dict(enumerate(each[step] for step in sorted(each)))
            study.add_trial(
                optuna.trial.create_trial(value=by_row[len(by_row) - 1], intermediate_values=by_row)
            )
    trial = study.ask()
    for row, step in enumerate(sorted(losses.mine)):
        trial.report(losses.mine[step], row)
        if trial.should_prune():
            loss = losses.mine[step]
            return f"at step {step} its loss {loss:.4g} is above the median of other rates"
    return ""


def is_over(recording: Recording) -> bool:
    """Whether a run counts as done: completed, diverged, or stopped early."""
    stopped = recording.status == "interrupted" and any(
        each.startswith(STOPPED) for each in recording.remarks
    )
    return stopped or recording.status in ("completed", "diverged")
