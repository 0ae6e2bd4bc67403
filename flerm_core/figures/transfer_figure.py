"""Loss against learning rate at several scales, one panel for each way of training.

These are the paper's Figures 2 to 5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flerm_core.figures.style import (
    GREY,
    PALETTE,
    Figure,
    axis,
    layout,
    nothing,
    number,
    numbers,
    text,
)
from flerm_core.tuning.best_lr import LossPoint, curve_optimum

Points = Sequence[LossPoint]
GAP = 0.03  # between panels, of the figure's width
# Space above the losses at the optima and their neighbours, as a part of the range of these losses.
HEADROOM = 0.35


def transfer_figure(panels: Mapping[str, Mapping[str, Points]]) -> Figure:
    """One panel for each way of training, with one curve for each scale.

    panels: the points of each curve, by the panel's title and the curve's label. A label has one
        colour in all panels, and one entry in the legend.

    In every panel a dotted line marks the optimum of the panel's first curve, the base's. Where
    learning rates transfer, the other curves have their lowest point on this line. Rates at which a
    run diverged are left out. All panels share one axis of losses. It shows each optimum and its
    neighbours, and cuts off higher losses.
    """
    drawn = {
        title: {label: _finite(points) for label, points in curves.items()}
        for title, curves in panels.items()
    }
    losses = [
        point.loss for curves in drawn.values() for points in curves.values() for point in points
    ]
    if not losses:
        return nothing("No settled curve yet")
    labels = list(dict.fromkeys(label for curves in drawn.values() for label in curves))
    data: list[dict[str, Any]] = []
    shapes: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    axes: dict[str, Any] = {}
    width = (1 - GAP * (len(drawn) - 1)) / len(drawn)
    for at, (title, curves) in enumerate(drawn.items()):
        suffix = "" if at == 0 else str(at + 1)
        left = at * (width + GAP)
        domain = [round(left, 4), round(min(left + width, 1.0), 4)]
        axes[f"xaxis{suffix}"] = axis(
            "log₂ learning rate", domain=domain, dtick=2, range=_ends(drawn)
        )
        notes.append({
            "text": text(title), "x": sum(domain) / 2, "y": 1, "xref": "paper", "yref": "paper",
            "showarrow": False, "xanchor": "center", "yanchor": "bottom",
        })  # fmt: skip
        for label, points in curves.items():
            colour = (
                GREY
                if labels.index(label) == 0
                else PALETTE[(labels.index(label) - 1) % len(PALETTE)]
            )
            seen = any(trace["name"] == text(label) for trace in data)
            data.append(_trace(label, points, colour, f"x{suffix}", legend=not seen))
        first = next(iter(curves.values()), ())
        if first:
            shapes.append(_optimum_line(first, f"x{suffix}"))
    y = _loss_axis(drawn, losses)
    figure = layout(
        axes.pop("xaxis"), y, shapes=shapes, annotations=notes, hovermode="closest", **axes
    )
    figure["margin"] = {**figure["margin"], "t": 40}
    figure["legend"] = {**figure["legend"], "y": 1.1}
    return {"data": data, "layout": figure}


def _optimum_line(points: Points, x: str) -> dict[str, Any]:
    """A dotted line at the optimum of a curve."""
    optimum = number(math.log2(curve_optimum(points)))
    line = {"color": GREY, "width": 1.5, "dash": "dot"}
    across = {"x0": optimum, "x1": optimum, "xref": x}
    return {"type": "line", **across, "y0": 0, "y1": 1, "yref": "paper", "line": line}


def _loss_axis(panels: Mapping[str, Mapping[str, Points]], losses: Sequence[float]) -> Any:
    """The axis of all panels, from the lowest loss to above the neighbours of each optimum."""
    low = min(losses)
    high = max(_high(points) for curves in panels.values() for points in curves.values() if points)
    room = HEADROOM * (high - low) or 1.0
    return axis("final loss", range=[number(low - room / 4), number(high + room)])


def _ends(panels: Mapping[str, Mapping[str, Points]]) -> list[float | None]:
    """The learning rates shown: two octaves to either side of the lowest losses."""
    best = [
        min(points, key=lambda point: point.loss).lr
        for curves in panels.values()
        for points in curves.values()
        if points
    ]
    return [number(math.log2(min(best)) - 2.2), number(math.log2(max(best)) + 2.2)]


def _finite(points: Points) -> list[LossPoint]:
    return [point for point in points if point.seeds and not point.diverged]


def _high(points: Points) -> float:
    """The higher loss beside the lowest."""
    best = min(range(len(points)), key=lambda at: points[at].loss)
    return max(point.loss for point in points[max(best - 1, 0) : best + 2])


def _trace(label: str, points: Points, colour: str, x: str, *, legend: bool) -> dict[str, Any]:
    spread = [
        0.0 if math.isnan(point.spread) else point.spread / math.sqrt(point.seeds)
        for point in points
    ]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": text(label),
        "legendgroup": text(label),
        "showlegend": legend,
        "xaxis": x,
        "x": numbers(math.log2(point.lr) for point in points),
        "y": numbers(point.loss for point in points),
        "error_y": {
            "type": "data",
            "array": numbers(spread),
            "thickness": 1,
            "width": 3,
            "visible": any(spread),
        },
        "line": {"color": colour, "width": 2},
        "marker": {"size": 7},
        "customdata": [f"{point.seeds} seed{'s' if point.seeds != 1 else ''}" for point in points],
        "hovertemplate": f"<b>{text(label)}</b><br>lr 2^%{{x}}: "
        "loss %{y:.5~g}, %{customdata}<extra></extra>",
    }
