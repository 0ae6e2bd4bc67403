"""How far a recording's FSLRs are from the targets that another recording gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flerm_core.figures.style import GREY, Figure, axis, layout, log_axis, nothing
from flerm_core.figures.trajectory_figure import MAX_POINTS, band_traces, tensor_traces

if TYPE_CHECKING:
    from flerm_core.trajectory import Trajectory


def ratio_figure(ratios: Trajectory, tensors: Sequence[str] = ()) -> Figure:
    """Measured FSLR over target, by band over steps, on a logarithmic axis with a line at 1.

    ratios: what `flerm_core.matching.target_ratios.target_ratios` gives, or
        `MatchedRates.ratio_trajectory`, which has the multipliers in it.
    tensors: names to draw as lines of their own.
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
    thinned = ratios.thinned(MAX_POINTS)
    data = [*band_traces(thinned, faint=bool(tensors)), *tensor_traces(thinned, tensors)]
    more = {"shapes": [even], "hovermode": "closest" if tensors else "x unified"}
    return {"data": data, "layout": layout(axis("step"), log_axis("FSLR / target", data), **more)}
