"""How far a recording's FSLRs are from the targets that another recording gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flerm_core.figures.style import GREY, Figure, axis, layout, log_axis, nothing
from flerm_core.figures.trajectory_figure import MAX_POINTS, band_traces

if TYPE_CHECKING:
    from flerm_core.trajectory import Trajectory


def ratio_figure(ratios: Trajectory) -> Figure:
    """Measured FSLR over target, by band over steps, on a logarithmic axis with a line at 1.

    ratios: what `flerm_core.matching.target_ratios.target_ratios` gives.
    """
    if not len(ratios):
        return nothing("No measurement to compare yet")
    even = {
        "type": "line",
        "x0": 0,
        "x1": 1,
        "xref": "paper",
        "y0": 1,
        "y1": 1,
        "line": {"color": GREY, "width": 1.5},
    }
    data = band_traces(ratios.thinned(MAX_POINTS))
    more = {"shapes": [even], "hovermode": "x unified"}
    return {"data": data, "layout": layout(axis("step"), log_axis("FSLR / target", data), **more)}
