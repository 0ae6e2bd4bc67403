"""How a notebook shows a trajectory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from flerm_core.figures.style import text
from flerm_core.figures.trajectory_figure import fslr_figure
from flerm_core.parameter_bands import BANDS
from flerm_core.parameter_names import is_depth_group

if TYPE_CHECKING:  # trajectories draw themselves by this module
    from flerm_core.trajectory import Trajectory

PLOTLY = "application/vnd.plotly.v1+json"


def mime_bundle(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory by media type: a plotly figure, an HTML table and plain text.

    Notebooks that draw plotly (JupyterLab with plotly, VS Code, Colab) show the figure, others the
    table.
    """
    html = as_table(trajectory)
    return {PLOTLY: fslr_figure(trajectory), "text/html": html, "text/plain": repr(trajectory)}


def as_table(trajectory: Trajectory) -> str:
    """For each band the number of tensors and their median FSLR at both ends, as HTML."""
    first, last = (trajectory.steps[0], trajectory.steps[-1]) if len(trajectory) else ("–", "–")
    ends = f"<th>FSLR at step {first}</th><th>at step {last}</th>"
    head = f"<tr><th>band</th><th>tensors</th>{ends}</tr>"
    rows = []
    for band in BANDS:
        columns = [
            at
            for at, (name, its) in enumerate(zip(trajectory.names, trajectory.bands, strict=True))
            if its == band and not is_depth_group(name)
        ]
        if columns:
            medians = [_median(trajectory, at, columns) for at in (0, -1)]
            cells = [text(band), len(columns), *medians]
            rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    table = f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"
    return f"<p>{text(repr(trajectory))}</p>{table}"


def _median(trajectory: Trajectory, row: int, columns: list[int]) -> str:
    if not len(trajectory):
        return "–"
    values = trajectory.values[row, columns]
    measured = values[~np.isnan(values)]
    return f"{np.median(measured):.4g}" if len(measured) else "–"
