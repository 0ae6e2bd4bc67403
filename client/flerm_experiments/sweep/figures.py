"""The figures of a sweep, from what the registry holds of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields

from flerm_core.figures import Figure, fslr_figure, transfer_figure
from flerm_core.trajectory import Trajectory
from flerm_core.tuning.best_lr import LossPoint
from flerm_experiments.sweep.planner import base_place, settled_seeds
from flerm_experiments.sweep.registry_state import Entry
from flerm_experiments.sweep.results import Row
from flerm_experiments.sweep.spec import Cell, Sweep
from flerm_experiments.sweep.trials import Trial
from flerm_experiments.workloads.base import Scale

Load = Callable[[str], Trajectory]
"""The trajectory of a recording, by its id."""


def drawings(
    sweep: Sweep, entries: Mapping[Trial, Entry], found: Sequence[Row], load: Load
) -> dict[str, Figure]:
    """Figures by name: `fslr`, the base's FSLRs over time at its best rate (the paper's Figures 1 and 6), and for every kind of
    scale (`width`, `depth`, `init_scale`, `rank`; Figures 2 to 5 and the ablations; `steps` for longer runs) the loss against
    learning rate."""
    figures: dict[str, Figure] = {}
    done = {trial: entry.loss for trial, entry in entries.items()}
    if settled_seeds(sweep, done, None) == sweep.base_seeds:
        place = base_place(sweep, done)
        recorded = [
            load(entries[Trial(None, place, seed)].recording) for seed in range(sweep.base_seeds)
        ]
        figures["fslr"] = fslr_figure(Trajectory.average(recorded)[0])
    for kind in dict.fromkeys(_kind(row.cell) for row in found if row.cell is not None):
        panels: dict[str, dict[str, Sequence[LossPoint]]] = {}
        for row in found:
            if row.cell is not None and row.points and _kind(row.cell) in (kind, ""):
                base = {} if not row.cell.shares_base else {"base": found[0].points}
                panels.setdefault(row.cell.variant, dict(base))[row.cell.size] = row.points
        if kind and panels:
            figures[kind] = transfer_figure(panels)
    return figures


def _kind(cell: Cell) -> str:
    base = Scale()
    differing = [
        each.name
        for each in fields(Scale)
        if getattr(cell.scale, each.name) != getattr(base, each.name)
    ]
    return "-".join(
        [*(name.replace("_", "-") for name in differing), *(["steps"] if cell.steps != 1 else [])]
    )
