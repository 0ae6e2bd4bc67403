"""Loss against learning rate at several scales, one panel for each way of training.

These are the paper's Figures 2 to 5.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flerm_core.figures.style import (
    GREY,
    Figure,
    axis,
    layout,
    nothing,
    number,
    numbers,
    sequential,
    text,
)
from flerm_core.tuning.best_lr import LossPoint, curve_optimum

Points = Sequence[LossPoint]
GAP = 0.03  # between panels, of the figure's width
ROW_GAP = 0.32  # between rows of panels, over their number, of the figure's height
COLUMNS = 4
TICKS = 4  # rates written below one panel
# Space above the losses at the optima and their neighbours, as a part of the range of these losses.
HEADROOM = 0.35
LONGEST = 30  # letters of a title or a label
LABEL = 15  # pixels between two labels of curves
LETTER = 7  # about the width of a label's letter in pixels
FIGURE = 1000  # about the width of a figure in pixels, by which labels stay in their panel
PANEL = 260  # about the height of a panel in pixels, by which labels are kept apart


@dataclass(frozen=True, slots=True)
class _Panel:
    """The position of a panel in the figure.

    suffix: the end of the panel's axis names, as plotly numbers axes.
    left, bottom, width, height: fractions of the figure's width and height.
    first: whether the panel is the leftmost of its row, which alone shows the loss axis.
    """

    suffix: str
    left: float
    bottom: float
    width: float
    height: float
    first: bool


def transfer_figure(
    panels: Mapping[str, Mapping[str, Points]],
    *,
    columns: int = COLUMNS,
    titles: bool = True,
) -> Figure:
    """One panel for each way of training, with one curve for each scale.

    panels: the points of each curve, by the panel's title and the curve's label, small scales
        first. A label has one colour in all panels, and stands beside each of its curves.
    columns: panels in a row.
    titles: whether panels have their titles above them.

    In every panel a dotted line marks the optimum of the first curve of all, the base's. Where
    learning rates transfer, the other curves have their lowest point on this line. A rate at which
    a run diverged has a cross at the top instead. All panels share one range of losses. It
    shows each optimum and its neighbours, and cuts off higher losses.
    """
    drawn = {
        title: {label: _finite(points) for label, points in curves.items()}
        for title, curves in panels.items()
    }
    if not any(points for curves in drawn.values() for points in curves.values()):
        return nothing("No run with a final loss yet")
    labels = list(dict.fromkeys(label for curves in drawn.values() for label in curves))
    colours = dict(zip(labels, [GREY, *sequential(len(labels) - 1)], strict=True))
    low, high = _loss_range(drawn)
    ends = _ends(drawn)
    ticks = _ticks(drawn, ends)
    base = next((its for curves in drawn.values() for its in curves.values() if its), ())
    data: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    axes: dict[str, Any] = {}
    for panel, (title, curves) in zip(_grid(len(drawn), columns), drawn.items(), strict=True):
        axes |= _axes(panel, ends, (low, high), ticks)
        if titles:
            notes.append(_title(title, panel))
        notes += _labels(curves, colours, panel, ends, (low, high))
        data += [_trace(label, its, colours[label], panel) for label, its in curves.items()]
        data += _crosses(panels[title], colours, panel, ends, high)
    shapes = [_optimum_line(base, panel) for panel in _grid(len(drawn), columns)] if base else []
    x, y = axes.pop("xaxis"), axes.pop("yaxis")
    figure = layout(x, y, shapes=shapes, annotations=notes, hovermode="closest", **axes)
    figure["margin"] = {**figure["margin"], "t": 34, "r": 44}
    figure["showlegend"] = False
    return {"data": data, "layout": figure}


def _grid(count: int, columns: int) -> list[_Panel]:
    columns = min(columns, count)
    rows = -(-count // columns)
    width = (1 - GAP * (columns - 1)) / columns
    gap = ROW_GAP / rows
    height = (1 - gap * (rows - 1)) / rows
    return [
        _Panel(
            suffix="" if at == 0 else str(at + 1),
            left=round(at % columns * (width + GAP), 4),
            bottom=round((rows - 1 - at // columns) * (height + gap), 4),
            width=round(width, 4),
            height=round(height, 4),
            first=at % columns == 0,
        )
        for at in range(count)
    ]


def _axes(
    panel: _Panel, ends: Sequence[float], losses: Sequence[float], ticks: Sequence[float]
) -> dict[str, Any]:
    x = axis(
        "learning rate", log=True, domain=[panel.left, min(panel.left + panel.width, 1)],
        range=list(ends), anchor=f"y{panel.suffix}", tickmode="array",
        tickvals=[number(rate) for rate in ticks], ticktext=[f"{rate:.2g}" for rate in ticks],
        tickangle=0,
    )  # fmt: skip
    y = axis(
        "final loss" if panel.first else "", range=list(losses), anchor=f"x{panel.suffix}",
        domain=[panel.bottom, min(panel.bottom + panel.height, 1)], showticklabels=panel.first,
        nticks=6,
    )  # fmt: skip
    return {f"xaxis{panel.suffix}": x, f"yaxis{panel.suffix}": y}


def _ticks(panels: Mapping[str, Mapping[str, Points]], ends: Sequence[float]) -> list[float]:
    """The recorded rates that are written below every panel, so far apart that none overlap."""
    apart = (ends[1] - ends[0]) / TICKS
    ticks: list[float] = []
    for rate in sorted(
        {p.lr for curves in panels.values() for its in curves.values() for p in its}
    ):
        place = math.log10(rate)
        if ends[0] <= place <= ends[1] and (not ticks or place - math.log10(ticks[-1]) >= apart):
            ticks.append(rate)
    return ticks


def _brief(name: str) -> str:
    """A name as it is written in the figure: its beginning, where it does not fit."""
    return text(name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…")


def _title(title: str, panel: _Panel) -> dict[str, Any]:
    return {
        "text": f"<b>{_brief(title)}</b>", "x": panel.left + panel.width / 2, "xref": "paper",
        "y": panel.bottom + panel.height, "yref": "paper", "showarrow": False,
        "xanchor": "center", "yanchor": "bottom",
    }  # fmt: skip


def _labels(
    curves: Mapping[str, Points],
    colours: Mapping[str, str],
    panel: _Panel,
    ends: Sequence[float],
    losses: Sequence[float],
) -> list[dict[str, Any]]:
    """Each curve's label beside an end of what is shown of it, kept apart from the others'.

    A scale of several settings has a line for each.
    """
    low, high = losses
    right: list[tuple[float, str, LossPoint]] = []
    left: list[tuple[float, str, LossPoint]] = []
    for label, points in curves.items():
        shown = [each for each in points if ends[0] <= math.log10(each.lr) <= ends[1]]
        # A curve that leaves the panel at its right is labelled at its left.
        leaves = bool(shown) and shown[-1].loss > high
        seen = [each for each in shown if each.loss <= high]
        if seen:
            point = seen[0] if leaves and label != next(iter(curves)) else seen[-1]
            place = ((point.loss - low) / (high - low) * PANEL, label, point)
            (left if point is seen[0] else right).append(place)
    found = []
    for places, anchor, shift in ((right, "left", 7), (left, "right", -7)):
        for up, (_, label, point) in _apart(places):
            x = math.log10(point.lr)
            # At the panel's left end there is no room: the label stands above, where a curve that
            # falls leaves it.
            letters = max(map(len, _brief(label).split(", ")))
            needed = max(1 / 6, (LETTER * letters + 7) / (FIGURE * panel.width))
            above = anchor == "right" and x - ends[0] < (ends[1] - ends[0]) * needed
            found.append({
                "text": _brief(label).replace(", ", ",<br>"), "x": x, "y": number(point.loss),
                "xref": f"x{panel.suffix}", "yref": f"y{panel.suffix}", "showarrow": False,
                "xanchor": "left" if above else anchor, "align": "left",
                "yanchor": "bottom" if above else "middle",
                "xshift": 7 if above else shift, "yshift": up,
                "font": {"color": colours[label], "size": 12},
            })  # fmt: skip
    return found


def _apart(
    places: Sequence[tuple[float, str, LossPoint]],
) -> Iterator[tuple[int, tuple[float, str, LossPoint]]]:
    """Each label with the pixels by which it is moved up, so that none lies over another."""
    below = -math.inf
    for place in sorted(places, key=lambda each: each[:2]):
        half = LABEL * (1 + place[1].count(", ")) / 2  # a line for each setting of the scale
        at = max(place[0], below + half)
        below = at + half
        yield round(at - place[0]), place


def _optimum_line(points: Points, panel: _Panel) -> dict[str, Any]:
    """A dotted line at the optimum of a curve."""
    optimum = number(curve_optimum(points))
    line = {"color": GREY, "width": 1.5, "dash": "dot"}
    across = {"x0": optimum, "x1": optimum, "xref": f"x{panel.suffix}"}
    up = {"y0": 0, "y1": 1, "yref": f"y{panel.suffix} domain"}
    return {"type": "line", **across, **up, "line": line}


def _loss_range(panels: Mapping[str, Mapping[str, Points]]) -> tuple[float, float]:
    """The losses shown: each optimum and its neighbours, with whole error bars below them."""
    shown = [
        point
        for curves in panels.values()
        for points in curves.values()
        for point in _beside_lowest(points)
    ]
    low, high = min(point.loss for point in shown), max(point.loss for point in shown)
    room = HEADROOM * (high - low) or 1.0
    bottom = min(low - room / 4, *(point.loss - _standard_error(point) for point in shown))
    return float(f"{bottom:.5g}"), float(f"{high + room:.5g}")


def _ends(panels: Mapping[str, Mapping[str, Points]]) -> tuple[float, float]:
    """log10 of the learning rates shown: two octaves to either side of the lowest losses."""
    best = [
        min(points, key=lambda point: point.loss).lr
        for curves in panels.values()
        for points in curves.values()
        if points
    ]
    return (
        float(f"{math.log10(min(best) / 2**2.2):.5g}"),
        float(f"{math.log10(max(best) * 2**2.2):.5g}"),
    )


def _finite(points: Points) -> list[LossPoint]:
    return [point for point in points if point.seeds and not point.diverged]


def _beside_lowest(points: Points) -> Points:
    """The point with the lowest loss and those on both sides; none where there are no points."""
    best = min(range(len(points)), key=lambda at: points[at].loss, default=0)
    return points[max(best - 1, 0) : best + 2]


def _standard_error(point: LossPoint) -> float:
    """Of the mean loss, which an error bar shows; 0 where it is not known."""
    return 0.0 if math.isnan(point.spread) else point.spread / math.sqrt(point.seeds)


def _trace(label: str, points: Points, colour: str, panel: _Panel) -> dict[str, Any]:
    errors = [_standard_error(point) for point in points]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": text(label),
        "xaxis": f"x{panel.suffix}",
        "yaxis": f"y{panel.suffix}",
        "x": numbers(point.lr for point in points),
        "y": numbers(point.loss for point in points),
        "error_y": {
            "type": "data",
            "array": numbers(errors),
            "thickness": 1,
            "width": 3,
            "visible": any(errors),
        },
        "line": {"color": colour, "width": 2},
        "marker": {"size": 7},
        "customdata": [f"{point.seeds} seed{'s' if point.seeds != 1 else ''}" for point in points],
        "hovertemplate": f"<b>{text(label)}</b><br>lr %{{x:.4~g}}: "
        "loss %{y:.5~g}, %{customdata}<extra></extra>",
    }


def _crosses(
    curves: Mapping[str, Points],
    colours: Mapping[str, str],
    panel: _Panel,
    ends: Sequence[float],
    high: float,
) -> list[dict[str, Any]]:
    """A cross at the top for each rate at which a run of a curve diverged."""
    found = [
        (label, point)
        for label, points in curves.items()
        for point in points
        if point.diverged and ends[0] <= math.log10(point.lr) <= ends[1]
    ]
    if not found:
        return []
    words = [
        f"{text(label)}: {point.diverged} of {point.diverged + point.seeds} seeds diverged"
        for label, point in found
    ]
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "diverged",
            "xaxis": f"x{panel.suffix}",
            "yaxis": f"y{panel.suffix}",
            "x": numbers(point.lr for _, point in found),
            "y": [number(high)] * len(found),
            "cliponaxis": False,
            "marker": {"symbol": "x", "size": 9, "color": [colours[label] for label, _ in found]},
            "customdata": words,
            "hovertemplate": "lr %{x:.4~g}<br>%{customdata}<extra></extra>",
        }
    ]
