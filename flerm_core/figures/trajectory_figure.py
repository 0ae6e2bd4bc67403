"""One run over its steps: FSLRs by band (the paper's Figure 1), loss and learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flerm_core.errors import NotFound, join_names
from flerm_core.figures.style import (
    BAND_COLOURS,
    BAND_DASHES,
    DASHES,
    GREY,
    PALETTE,
    Figure,
    axis,
    layout,
    log_axis,
    nothing,
    numbers,
    positive,
    see_through,
    text,
)
from flerm_core.parameter_bands import BANDS
from flerm_core.parameter_names import is_depth_group

if TYPE_CHECKING:  # trajectories draw themselves by this module
    from flerm_core.trajectory import Trajectory

QUANTILES = (0.1, 0.9)  # of the ribbon
MAX_POINTS = 400  # more than a plot has pixels to show
MAX_TENSORS = 40  # lines that an eye can still tell apart, and a bound to the data


def fslr_figure(
    trajectory: Trajectory,
    tensors: Sequence[str] = (),
    *,
    title: str = "FSLR (output units per unit lr)",
) -> Figure:
    """FSLRs over steps on a logarithmic axis, as in the paper's Figure 1.

    For each band a line shows the median over its tensors, and a ribbon reaches from their 10 % to
    their 90 % quantile. Depth groups count in no band. Rows are thinned to 400.

    tensors: names to draw as lines of their own, of which the first 40 are drawn. Bands are then
        fainter. Raises `NotFound` for a name that is not in the trajectory.
    title: the name of the vertical axis.
    """
    unknown = [name for name in tensors if name not in trajectory.names]
    if unknown:
        raise NotFound(
            f"tensors: {join_names(unknown)} not in the trajectory, which has "
            f"{join_names(trajectory.names)}"
        )
    if not len(trajectory):
        return nothing("No measurement yet")
    thinned = trajectory.thinned(MAX_POINTS)
    lines = tensor_traces(thinned, tensors)
    data = [*band_traces(thinned, faint=bool(lines)), *lines]
    if not data:
        return nothing("Depth groups only, which count in no band: name one to draw it")
    hover = {"hovermode": "closest"} if lines else {"hovermode": "x unified"}
    return {"data": data, "layout": layout(axis("step"), log_axis(title, data), **hover)}


def band_traces(trajectory: Trajectory, *, faint: bool = False) -> list[dict[str, Any]]:
    """The traces of each band: the lower and upper edge of the ribbon, and the median.

    A band of one tensor has the median alone.

    faint: draw all fainter, behind other lines.
    """
    traces: list[dict[str, Any]] = []
    steps = trajectory.steps.tolist()
    for band in BANDS:
        columns = [
            at
            for at, (name, its) in enumerate(zip(trajectory.names, trajectory.bands, strict=True))
            if its == band and not is_depth_group(name)
        ]
        if not columns:
            continue
        low, median, high = _quantiles(trajectory.values[:, columns])
        colour, name = BAND_COLOURS[band], f"{text(band)} ({len(columns)})"
        common = {
            "type": "scatter",
            "mode": "lines",
            "x": steps,
            "legendgroup": band,
            "connectgaps": True,
        }
        if len(columns) > 1:
            edge = {
                **common,
                "line": {"width": 0, "color": colour},
                "hoverinfo": "skip",
                "showlegend": False,
            }
            fill = {"fill": "tonexty", "fillcolor": see_through(colour, 0.06 if faint else 0.16)}
            traces += [{**edge, "y": positive(low)}, {**edge, **fill, "y": positive(high)}]
        # A line through a single row would be invisible, so few rows are marked.
        mode = {"mode": "lines+markers"} if len(steps) < 30 else {}
        line = {"color": colour, "width": 1 if faint else 2, "dash": BAND_DASHES[band]}
        hover = f"{text(band)}, median: %{{y:.4~g}}<extra></extra>"
        back = {"opacity": 0.5} if faint else {}
        traces.append(
            {
                **common,
                **mode,
                **back,
                "y": positive(median),
                "name": name,
                "line": line,
                "hovertemplate": hover,
            }
        )
    return traces


def tensor_traces(trajectory: Trajectory, tensors: Sequence[str]) -> list[dict[str, Any]]:
    """A line for each of the first `MAX_TENSORS` of `tensors`."""
    return [
        _line(trajectory, name, at) for at, name in enumerate(dict.fromkeys(tensors[:MAX_TENSORS]))
    ]


def _quantiles(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Low, median, high of each row over what was measured: [3, T]; NaN where nothing was."""
    result = np.full((3, len(values)), np.nan)
    rows = ~np.isnan(values).all(axis=1)
    if rows.any():
        result[:, rows] = np.nanquantile(
            values[rows].astype(np.float64), (QUANTILES[0], 0.5, QUANTILES[1]), axis=1
        )
    return result


def _line(trajectory: Trajectory, name: str, place: int) -> dict[str, Any]:
    at = trajectory.names.index(name)
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(trajectory) < 30 else "lines",
        "x": trajectory.steps.tolist(),
        "y": positive(trajectory.values[:, at].tolist()),
        "name": text(name),
        "line": {
            "color": PALETTE[place % len(PALETTE)],
            "width": 2,
            "dash": DASHES[place // len(PALETTE)],
        },
        "connectgaps": True,
        "hovertemplate": f"<b>{text(name)}</b><br>{text(trajectory.bands[at])}<br>"
        "step %{x}: %{y:.4~g}<extra></extra>",
    }


def run_figure(trajectory: Trajectory, others: Mapping[str, Trajectory] | None = None) -> Figure:
    """Loss (left axis) and learning rate (right axis) at the measured steps.

    Of the two, one that was never logged is left out.

    others: runs whose losses are drawn beside this one's, by label.
    """
    thinned = trajectory.thinned(MAX_POINTS)
    steps = thinned.steps.tolist()
    mode = "lines+markers" if len(steps) < 30 else "lines"
    data: list[dict[str, Any]] = []
    losses, rates = thinned.losses, thinned.learning_rates
    if np.isfinite(losses).any():
        hover = "loss: %{y:.5~g}<extra></extra>"
        line = {"color": PALETTE[0], "width": 2}
        data.append(
            _series(steps, numbers(losses.tolist()), "loss", mode, line, hovertemplate=hover)
        )
    for at, (label, other) in enumerate((others or {}).items()):
        beside = other.thinned(MAX_POINTS)
        if np.isfinite(beside.losses).any():
            line = {"color": PALETTE[at + 1], "width": 1.5, "dash": DASHES[1 + at % 4]}
            hover = f"loss, {text(label)}: %{{y:.5~g}}<extra></extra>"
            name = f"loss, {text(label)}"
            values = numbers(beside.losses.tolist())
            data.append(
                _series(beside.steps.tolist(), values, name, mode, line, hovertemplate=hover)
            )
    if np.isfinite(rates).any():
        hover = "learning rate: %{y:.4~g}<extra></extra>"
        line = {"color": GREY, "width": 1.5, "dash": "dot"}
        data.append(
            _series(
                steps,
                numbers(rates.tolist()),
                "learning rate",
                mode,
                line,
                hovertemplate=hover,
                yaxis="y2",
            )
        )
    if not data:
        return nothing(
            "No loss and no learning rate was logged: flerm.log(loss=…) in the training loop adds "
            "them"
        )
    right = axis(
        "learning rate",
        overlaying="y",
        side="right",
        showgrid=False,
        rangemode="tozero",
        tickmode="auto",
        nticks=5,
    )
    right |= {"tickformat": ".3~g"}
    more = {"yaxis2": right, "hovermode": "x unified"}
    return {"data": data, "layout": layout(axis("step"), axis("loss"), **more)}


def _series(
    steps: list[int],
    values: list[float | None],
    name: str,
    mode: str,
    line: dict[str, Any],
    **more: Any,
) -> dict[str, Any]:
    shared = {"type": "scatter", "mode": mode, "connectgaps": True}
    return {**shared, "x": steps, "y": values, "name": name, "line": line, **more}
