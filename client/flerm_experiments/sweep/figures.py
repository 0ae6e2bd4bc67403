"""The figures of a sweep, from what the registry holds of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from flerm_core.figures import Figure, fslr_figure, transfer_figure
from flerm_core.trajectory import Trajectory
from flerm_core.tuning.best_lr import LossPoint
from flerm_experiments.sweep.planner import base_best_index, seeds_settled_of
from flerm_experiments.sweep.registry_state import FinishedTrial
from flerm_experiments.sweep.results import CurveRow
from flerm_experiments.sweep.spec import Cell, Sweep
from flerm_experiments.sweep.trials import Trial

_HEIGHT, _ROW_HEIGHT = 420, 320  # of one row of panels, of each further one

LoadTrajectory = Callable[[str], Trajectory]
"""Recording id to its trajectory."""


def sweep_figures(
    sweep: Sweep,
    finished: Mapping[Trial, FinishedTrial],
    rows: Sequence[CurveRow],
    load: LoadTrajectory,
) -> dict[str, Figure]:
    """A sweep's figures by name.

    `fslr` is the base's FSLRs over time at its best rate (the paper's Figures 1 and 6). Every kind
    of scale has a figure of loss against learning rate: `width`, `depth`, `init-scale`, `rank` (the
    paper's Figures 2 to 5 and the ablations), and `steps` for longer runs.
    """
    figures: dict[str, Figure] = {}
    losses = {trial: each.loss for trial, each in finished.items()}
    if seeds_settled_of(sweep, losses, None) == sweep.base_seeds:
        best = base_best_index(sweep, losses)
        ids = [finished[Trial(None, best, seed)].recording for seed in range(sweep.base_seeds)]
        figures["fslr"] = fslr_figure(Trajectory.average([load(each) for each in ids])[0])
    for kind in dict.fromkeys(_scale_kind(row.cell) for row in rows if row.cell is not None):
        panels: dict[str, dict[str, Sequence[LossPoint]]] = {}
        for row in rows:
            if row.cell is not None and row.points and _scale_kind(row.cell) in (kind, ""):
                base = {"base": rows[0].points} if row.cell.shares_base_lr else {}
                panels.setdefault(row.cell.variant, dict(base))[row.cell.size] = row.points
        if kind and panels:
            figures[kind] = transfer_figure(panels)
    return figures


def picture_height(figure: Figure) -> int:
    """The pixels that a figure of `sweep_figures` needs: the more, the more rows of panels."""
    axes = [each for name, each in figure["layout"].items() if name.startswith("yaxis")]
    rows = {each["domain"][0] for each in axes if "domain" in each}
    return _HEIGHT + _ROW_HEIGHT * max(len(rows) - 1, 0)


def _scale_kind(cell: Cell) -> str:
    """Which fields of the scale differ from the base's, joined by dashes: `width-depth`."""
    names = [each.replace("_", "-") for each in cell.scale.differing]
    return "-".join([*names, *(["steps"] if cell.steps != 1 else [])])
