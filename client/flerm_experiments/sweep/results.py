"""The outcome of a sweep.

For every cell: its optimum, how far that lies from the base's, and the loss at the base's rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from flerm_core.tuning.best_lr import LossPoint, SweepRun, curve_optimum, losses_by_rate
from flerm_core.tuning.optimum_shift import Shift, complete_curve, shift
from flerm_core.tuning.regret import UNKNOWN, Regret, regret
from flerm_experiments.sweep.planner import base_best_index, seeds_settled_of
from flerm_experiments.sweep.registry_state import FinishedTrial
from flerm_experiments.sweep.spec import Cell, Sweep
from flerm_experiments.sweep.trials import Trial

HEADINGS = (
    "scale",
    "variant",
    "seeds",
    "optimum",
    "shift",
    "90 % interval",
    "best loss",
    "loss at base's rate",
    "regret",
    "runs",
    "min",
)
_UNKNOWN = "–"


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveRow:
    """One curve of loss against learning rate: a row of the table.

    cell: None for the base.
    seeds: how many the curve is settled for; only their runs count below.
    optimum: a learning rate.
    shift: in octaves from the base's optimum.
    loss: the mean at the best rate tried.
    loss_at_base: the mean at the base's best rate, infinite where a seed diverged there.
    regret: of loss_at_base over all variants of this size.
    runs: all trainings of the curve.
    seconds: their wall time, summed.

    While a curve is settled for no seed, everything but `cell`, `seeds`, `runs` and `seconds` is
    NaN or empty.
    """

    cell: Cell | None
    seeds: int
    optimum: float
    shift: Shift
    loss: float
    loss_at_base: float
    regret: Regret
    points: tuple[LossPoint, ...]
    runs: int
    seconds: float

    @property
    def texts(self) -> tuple[str, ...]:
        """The row's texts under `HEADINGS`."""
        low, high, octaves = self.shift.low, self.shift.high, self.shift.octaves
        no_shift = self.cell is None or math.isnan(octaves)
        no_interval = self.cell is None or math.isnan(low)
        return (
            "base" if self.cell is None else self.cell.size,
            "plain" if self.cell is None else self.cell.variant,
            str(self.seeds),
            _UNKNOWN if math.isnan(self.optimum) else f"2^{math.log2(self.optimum):.2f}",
            _UNKNOWN if no_shift else f"{octaves:+.2f}",
            _UNKNOWN if no_interval else f"{low:+.2f} to {high:+.2f}",
            _loss_text(self.loss),
            _loss_text(self.loss_at_base),
            self.regret.text,
            str(self.runs),
            f"{self.seconds / 60:.1f}",
        )


def curve_rows(sweep: Sweep, finished: Mapping[Trial, FinishedTrial]) -> list[CurveRow]:
    """The base's row, then one for each cell in the sweep's order."""
    losses = {trial: each.loss for trial, each in finished.items()}
    settled = {cell: seeds_settled_of(sweep, losses, cell) for cell in (None, *sweep.cells)}
    if settled[None] < sweep.base_seeds:
        settled = dict.fromkeys(settled, 0)
    curves = {
        cell: [
            each.sweep_run(sweep) for each in _trials_of(finished, cell) if each.trial.seed < seeds
        ]
        for cell, seeds in settled.items()
    }
    base_lr = sweep.lr_at(base_best_index(sweep, losses)) if curves[None] else math.nan
    return [_curve_row(cell, curves, finished, base_lr) for cell in curves]


def _curve_row(
    cell: Cell | None,
    curves: Mapping[Cell | None, list[SweepRun]],
    finished: Mapping[Trial, FinishedTrial],
    base_lr: float,
) -> CurveRow:
    runs = curves[cell]
    points = complete_curve(runs)
    # A cell whose rates mean something else is compared with its own variant at the base's scale.
    shares_lr = cell is None or cell.shares_base_lr
    own = None if cell is None or shares_lr else Cell(variant=cell.variant)
    reference = curves.get(own, [])
    known = bool(reference) and any(point.seeds for point in points)
    means = (point.loss for point in points if point.seeds and not point.diverged)
    trials = _trials_of(finished, cell)
    return CurveRow(
        cell=cell,
        seeds=len({run.seed for run in runs}),
        optimum=curve_optimum(points) if known else math.nan,
        shift=shift(runs, reference)
        if known
        else Shift(octaves=math.nan, low=math.nan, high=math.nan),
        loss=min(means, default=math.nan),
        loss_at_base=_loss_at(points, base_lr) if shares_lr else math.nan,
        regret=UNKNOWN if cell is None or not shares_lr else _regret(cell, curves, base_lr),
        points=points,
        runs=len(trials),
        seconds=sum(each.seconds for each in trials),
    )


def _regret(cell: Cell, curves: Mapping[Cell | None, list[SweepRun]], base_lr: float) -> Regret:
    losses = {
        each: losses_by_rate(runs)
        for each, runs in curves.items()
        if each is not None and each.size == cell.size
    }
    return regret(losses[cell], base_lr, losses.values())


def _trials_of(finished: Mapping[Trial, FinishedTrial], cell: Cell | None) -> list[FinishedTrial]:
    return [
        each
        for trial, each in finished.items()
        if trial.cell == cell and not trial.base_measurement
    ]


def _loss_at(points: Sequence[LossPoint], lr: float) -> float:
    losses = [
        math.inf if point.diverged else point.loss for point in points if math.isclose(point.lr, lr)
    ]
    return fmean(losses) if losses else math.nan


def _loss_text(value: float) -> str:
    return _UNKNOWN if math.isnan(value) else "diverged" if math.isinf(value) else f"{value:.4f}"


def markdown(sweep: Sweep, rows: Sequence[CurveRow]) -> str:
    """The table as a section of a Markdown document. Curves that were not begun have no row."""
    begun = (row.texts for row in rows if row.cell is None or row.runs)
    table = (HEADINGS, ("---",) * len(HEADINGS), *begun)
    lines = [f"| {' | '.join(each)} |" for each in table]
    return "\n".join(
        [f"## {sweep.title or sweep.name}", "", _settings_sentence(sweep, rows), "", *lines, ""]
    )


def _settings_sentence(sweep: Sweep, rows: Sequence[CurveRow]) -> str:
    minutes = sum(row.seconds for row in rows) / 60
    what = (
        f"`{sweep.command.text}`"
        if sweep.command is not None
        else (f"{sweep.workload}, {sweep.steps} steps, {sweep.optimizer}, {sweep.schedule} rate")
        + (", norms held" if sweep.hold_norms else "")
    )
    return (
        f"`flerm sweep {sweep.name} --seeds {sweep.seeds}`: {what}. "
        f"The base is recorded with seeds 0 to {sweep.base_seeds - 1}. "
        f"{sum(row.runs for row in rows)} trainings, {minutes:.0f} minutes in all, one at a time."
    )
