"""Which learning rates of a family were recorded with which seeds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from flerm_core._arrays import thin
from flerm_core.records.recording import same_lr
from flerm_server.store.family_runs import FamilyRun

MAX_SEEDS, MAX_RATES = 32, 64  # columns and rows


@dataclass(frozen=True, slots=True)
class SeedCoverage:
    """Which learning rates (rows) were recorded with which seeds (columns).

    `rows`: each learning rate, ascending, with the newest recording of each of `seeds`, or None; of
    more than `MAX_RATES` rates some, evenly spread. `hidden`, `hidden_rates`: how many seeds and
    rates are not shown. `missing`: how many cells are None.
    """

    seeds: tuple[int, ...]
    rows: tuple[tuple[float, tuple[FamilyRun | None, ...]], ...]
    hidden: int
    missing: int
    hidden_rates: int


def seed_coverage(runs: Sequence[FamilyRun], lapsed: Collection[str]) -> SeedCoverage:
    """Where `runs`, newest first, lie.

    Of several with one learning rate and seed the newest counts. lapsed: the ids of those that lost
    their lease.
    """
    seeds = sorted({each.run.seed for each in runs})
    shown = tuple(seeds[:MAX_SEEDS])
    row_of: dict[float, float] = {}  # learning rates that `same_lr` calls one share a row
    row: float | None = None
    for lr in sorted({each.run.lr for each in runs}):
        row = row if row is not None and same_lr(row, lr) else lr
        row_of[lr] = row
    newest: dict[float, dict[int, FamilyRun]] = {row: {} for row in row_of.values()}
    for each in runs:
        newest[row_of[each.run.lr]].setdefault(each.run.seed, each)
    rates = list(newest)
    rates_shown = [rates[at] for at in thin(len(rates), MAX_RATES).tolist()]

    def cell(run: FamilyRun | None) -> FamilyRun | None:
        if run is None or run.id not in lapsed:
            return run
        return replace(run, run=replace(run.run, status="interrupted"))

    rows = tuple((lr, tuple(cell(newest[lr].get(seed)) for seed in shown)) for lr in rates_shown)
    missing = sum(cell is None for _, cells in rows for cell in cells)
    hidden_rates = len(rates) - len(rates_shown)
    return SeedCoverage(shown, rows, len(seeds) - len(shown), missing, hidden_rates)
