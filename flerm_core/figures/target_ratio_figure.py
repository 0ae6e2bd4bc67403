"""Two recordings beside each other: how far each tensor's FSLR is from the one that the other would set as its target."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flerm_core.errors import NotFound, join_names
from flerm_core.figures.style import GREY, Figure, axis, layout, log_axis, nothing
from flerm_core.figures.trajectory_figure import MAX_POINTS, band_traces
from flerm_core.matching.match import match_rows, thinned_columns
from flerm_core.parameter_names import is_depth_group
from flerm_core.trajectory import Trajectory


def ratios(base: Trajectory, other: Trajectory, *, blocks: Sequence[str] = ()) -> Trajectory:
    """`other`'s FSLRs over the targets that `base` gives for its tensors at the same steps; 1 is matched, NaN is unmeasured.

    Steps beyond the base's last are compared with its last (as targets are). Roles are left out. Raises `NotFound` for tensors
    that the base has no counterpart of, where there is none to compare, and for a base without rows.
    """
    columns = [at for at, name in enumerate(other.names) if not is_depth_group(name)]
    names = [other.names[at] for at in columns]
    if not names:
        raise NotFound(f"names: {join_names(other.names)} are roles; there is no tensor to compare")
    base_columns = dict(zip(base.names, base.resampled(other.steps).T, strict=True))
    bands = dict(zip(base.names, base.bands, strict=True))
    # By the default rule, which gives every tensor a target of its own.
    targets = match_rows(
        base_columns,
        names,
        whole_run=thinned_columns(base),
        bands=bands,
        blocks=tuple(blocks) or None,
    )
    wanted = np.stack([targets[name] for name in names], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = other.values[:, columns].astype(np.float64) / wanted
    quotient[~np.isfinite(quotient)] = np.nan
    shapes = [other.shapes[at] for at in columns]
    return Trajectory(
        names, shapes, other.steps, quotient, bands=[other.bands[at] for at in columns]
    )


def ratio_figure(quotients: Trajectory) -> Figure:
    """What `ratios` gives, by band over steps on a logarithmic axis with a line at 1."""
    if not len(quotients):
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
    data = band_traces(quotients.thinned(MAX_POINTS))
    more = {"shapes": [even], "hovermode": "x unified"}
    return {"data": data, "layout": layout(axis("step"), log_axis("FSLR / target", data), **more)}
