"""What came out of a sweep: for every cell its optimum, how far that lies from the base's, and the loss at the base's rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from flerm_core.tuning.best_lr import LossPoint, SweepRun, curve_optimum
from flerm_core.tuning.optimum_shift import Shift, complete_curve, shift
from flerm_experiments.sweep.planner import base_place, settled_seeds
from flerm_experiments.sweep.registry_state import Entry
from flerm_experiments.sweep.spec import Cell, Sweep
from flerm_experiments.sweep.trials import Trial
from flerm_experiments.workloads.base import Scale

HEADINGS = (
    "scale",
    "variant",
    "seeds",
    "optimum",
    "shift",
    "90 % interval",
    "best loss",
    "loss at base's rate",
    "runs",
    "min",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One curve. Fields but `cell`, `seeds`, `runs` and `seconds` are NaN or empty where it is not settled for any seed yet.

    `cell` None: the base. `seeds`: those its curve is settled for, which alone count. `optimum`: a learning rate. `loss`: the
    mean at the best rate tried; `loss_at_base`: at the base's best rate, infinite where a seed diverged there. `seconds`: of
    wall time, all its runs one after the other.
    """

    cell: Cell | None
    seeds: int
    optimum: float
    shift: Shift
    loss: float
    loss_at_base: float
    points: tuple[LossPoint, ...]
    runs: int
    seconds: float

    @property
    def texts(self) -> tuple[str, ...]:
        """As a table has it, under `HEADINGS`."""
        scale = "base" if self.cell is None else self.cell.size
        variant = "plain" if self.cell is None else self.cell.variant
        interval = (
            "–"
            if self.cell is None or math.isnan(self.shift.low)
            else f"{self.shift.low:+.2f} to {self.shift.high:+.2f}"
        )
        optimum = "–" if math.isnan(self.optimum) else f"2^{math.log2(self.optimum):.2f}"
        moved = (
            "–"
            if self.cell is None or math.isnan(self.shift.octaves)
            else f"{self.shift.octaves:+.2f}"
        )
        losses = (_loss(self.loss), _loss(self.loss_at_base))
        return (
            scale,
            variant,
            str(self.seeds),
            optimum,
            moved,
            interval,
            *losses,
            str(self.runs),
            f"{self.seconds / 60:.1f}",
        )


def rows(sweep: Sweep, entries: Mapping[Trial, Entry]) -> list[Row]:
    """The base's row and one per cell, in the sweep's order."""
    done = {trial: entry.loss for trial, entry in entries.items()}
    counted = {
        cell: _runs(sweep, entries, cell, settled_seeds(sweep, done, cell))
        for cell in (None, *sweep.cells)
    }
    if settled_seeds(sweep, done, None) < sweep.base_seeds:
        counted = {cell: [] for cell in counted}
    rate = sweep.centre * 2.0 ** base_place(sweep, done) if counted[None] else math.nan
    return [_row(cell, counted, entries, rate) for cell in counted]


def _row(
    cell: Cell | None,
    counted: Mapping[Cell | None, list[SweepRun]],
    entries: Mapping[Trial, Entry],
    rate: float,
) -> Row:
    runs = counted[cell]
    points = complete_curve(runs)
    own = None if cell is None or cell.shares_base else Cell(scale=Scale(), variant=cell.variant)
    against = counted.get(own, [])
    known = bool(points) and any(point.seeds for point in points) and bool(against)
    mine = [entry for trial, entry in entries.items() if trial.cell == cell and not trial.measured]
    return Row(
        cell=cell,
        seeds=len({run.seed for run in runs}),
        optimum=curve_optimum(points) if known else math.nan,
        shift=shift(runs, against)
        if known
        else Shift(octaves=math.nan, low=math.nan, high=math.nan),
        loss=min(
            (point.loss for point in points if point.seeds and not point.diverged), default=math.nan
        ),
        loss_at_base=_at(points, rate) if cell is None or cell.shares_base else math.nan,
        points=points,
        runs=len(mine),
        seconds=sum(entry.seconds for entry in mine),
    )


def _runs(
    sweep: Sweep, entries: Mapping[Trial, Entry], cell: Cell | None, seeds: int
) -> list[SweepRun]:
    mine = [entry for trial, entry in entries.items() if trial.cell == cell and not trial.measured]
    return [entry.run(sweep) for entry in mine if entry.trial.seed < seeds]


def _at(points: Sequence[LossPoint], rate: float) -> float:
    at = [
        math.inf if point.diverged else point.loss
        for point in points
        if math.isclose(point.lr, rate)
    ]
    return fmean(at) if at else math.nan


def _loss(value: float) -> str:
    return "–" if math.isnan(value) else "diverged" if math.isinf(value) else f"{value:.4f}"


def markdown(sweep: Sweep, found: Sequence[Row]) -> str:
    """The table as a section of a Markdown document."""
    said = [f"## {sweep.title or sweep.name}", "", _setting(sweep, found), ""]
    lines = [
        f"| {' | '.join(each)} |"
        for each in (HEADINGS, ("---",) * len(HEADINGS), *(row.texts for row in found))
    ]
    return "\n".join([*said, *lines, ""])


def _setting(sweep: Sweep, found: Sequence[Row]) -> str:
    minutes = sum(row.seconds for row in found) / 60
    return (
        f"`flerm sweep {sweep.name} --seeds {sweep.seeds}`: {sweep.workload}, {sweep.steps} steps, {sweep.optimizer}, "
        f"{sweep.schedule} rate. The base is recorded with seeds 0 to {sweep.base_seeds - 1}. "
        f"{sum(row.runs for row in found)} trainings, {minutes:.0f} minutes in all, one at a time."
    )
