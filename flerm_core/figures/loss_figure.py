"""Loss against learning rate, one curve per scale and kind of run: the paper's Figure 2."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from flerm_core.figures.style import (
    DASHES,
    GREY,
    PALETTE,
    Figure,
    axis,
    layout,
    log_axis,
    nothing,
    number,
    numbers,
    text,
)
from flerm_core.records.recording import Recording
from flerm_core.tuning.best_lr import Best, LossPoint, SweepRun, loss_curve

MOST_SCALES = 12  # a setting with more values than this tells runs apart, not scales
LOG_RATIO = 20.0  # losses further apart than this are shown on a logarithmic axis
_COLOURS = {"plain": "#d1495b", "matched": "#4c84d6"}
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "pentagon")


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The runs of one role, variant and scale.

    `scale`: the settings that differ within the family (`width 128`), or empty.
    """

    role: str
    variant: str
    scale: str
    points: tuple[LossPoint, ...]

    @property
    def label(self) -> str:
        """The curve's name in a legend, such as `scaled, matched, width 128`."""
        return ", ".join(part for part in (self.role, self.variant, self.scale) if part)


def curves_of(recordings: Iterable[Recording]) -> list[Curve]:
    """The curves of a family's recordings, base first, then by scale.

    A curve without a finished run is left out.
    """
    return curves_of_runs(
        ScaledRun(each.spec.role, each.spec.variant, each.spec.config, SweepRun.of(each))
        for each in recordings
    )


class ScaledRun(NamedTuple):
    """A run, with all by which it belongs to one curve or another.

    config: settings of the model.
    """

    role: str
    variant: str
    config: Mapping[str, Any]
    run: SweepRun


def curves_of_runs(runs: Iterable[ScaledRun]) -> list[Curve]:
    """`curves_of` for runs instead of recordings.

    Runs that share one mapping as their config are handled fastest.
    """
    found = list(runs)
    configs = {id(each.config): each.config for each in found}
    keys = _scale_keys(configs.values())
    settings_of = {
        at: tuple((key, config[key]) for key in keys if key in config)
        for at, config in configs.items()
    }
    order_of = {
        at: tuple((key, _order(value)) for key, value in settings)
        for at, settings in settings_of.items()
    }
    by_curve: dict[tuple[Any, ...], list[SweepRun]] = defaultdict(list)
    for each in found:
        at = id(each.config)
        curve = (each.role != "base", order_of[at], each.variant, settings_of[at])
        by_curve[curve].append(each.run)
    curves = []
    for (scaled, _, variant, settings), its in sorted(
        by_curve.items(), key=lambda each: each[0][:3]
    ):
        points = loss_curve(its)
        if points:
            scale = ", ".join(
                f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in settings
            )
            curves.append(
                Curve(
                    role="scaled" if scaled else "base", variant=variant, scale=scale, points=points
                )
            )
    return curves


def _scale_keys(configs: Iterable[Mapping[str, Any]]) -> list[str]:
    """The settings that tell the scales apart, such as width, depth or rank.

    A setting tells scales apart when it has from two to `MOST_SCALES` values. Settings with short
    values are taken first. A setting is left out when the earlier ones already tell as many scales
    apart: the count of parameters says nothing new beside the width.
    """
    found = [
        {key: value for key, value in each.items() if isinstance(value, str | int | float)}
        for each in configs
    ]
    values: dict[str, set[Any]] = defaultdict(set)
    for config in found:
        for key, value in config.items():
            values[key].add(value)
    differing = [key for key, its in values.items() if 1 < len(its) <= MOST_SCALES]
    chosen: list[str] = []
    for key in sorted(differing, key=lambda key: sum(len(str(value)) for value in values[key])):
        if len(_scales(found, [*chosen, key])) > len(_scales(found, chosen)):
            chosen.append(key)
    return [key for key in values if key in chosen]


def _scales(configs: Iterable[Mapping[str, Any]], keys: Sequence[str]) -> set[tuple[Any, ...]]:
    return {tuple(config.get(key) for key in keys) for config in configs}


def _order(value: object) -> tuple[int, float, str]:
    """Numbers by size, then words by letter."""
    return (0, float(value), "") if isinstance(value, int | float) else (1, 0.0, str(value))


def loss_figure(curves: Sequence[Curve], best: Best | None = None) -> Figure:
    """Final loss with its spread over seeds, against learning rate on a logarithmic axis.

    A vertical line marks the rate of `best`. A rate at which a run diverged has a cross at the top.
    The axis of losses is logarithmic where the highest is more than 20 times the lowest.
    """
    losses = [point.loss for curve in curves for point in curve.points if math.isfinite(point.loss)]
    if not losses:
        return nothing("No finished run with a final loss yet")
    log = min(losses) > 0 and max(losses) / min(losses) > LOG_RATIO
    scales = list(dict.fromkeys(curve.scale for curve in curves))
    data = [_trace(curve, scales.index(curve.scale)) for curve in curves]
    diverged = [(curve, point) for curve in curves for point in curve.points if point.diverged]
    if diverged:
        data.append(_crosses(diverged, max(losses)))
    rates = sorted({point.lr for curve in curves for point in curve.points})
    margin = 1.4
    ends = [math.log10(rates[0] / margin), math.log10(rates[-1] * margin)]
    x = axis("learning rate", log=True, range=ends, dtick="D2")
    if len(rates) <= 12:
        x |= {
            "tickmode": "array",
            "tickvals": [number(rate) for rate in rates],
            "ticktext": [f"{rate:.3g}" for rate in rates],
        }
    more: dict[str, Any] = {"hovermode": "closest"}
    if best is not None:
        more |= _mark(best.rate, ends)
    return {
        "data": data,
        "layout": layout(x, log_axis("final loss", data) if log else axis("final loss"), **more),
    }


def _mark(rate: float, ends: Sequence[float]) -> dict[str, Any]:
    """A line at the rate to use, with its value written above the curves."""
    place = math.log10(rate)
    line = {"color": GREY, "width": 1.5, "dash": "dot"}
    shape = {
        "type": "line",
        "x0": rate,
        "x1": rate,
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "line": line,
    }
    across = (place - ends[0]) / (ends[1] - ends[0])
    anchor = "left" if across < 0.25 else "right" if across > 0.75 else "center"
    words = {
        "text": f"best base rate: {rate:.3g}",
        "showarrow": False,
        "xanchor": anchor,
        "yanchor": "bottom",
    }
    note = {**words, "x": place, "xref": "x", "y": 1, "yref": "paper"}
    legend = {"orientation": "h", "x": 0, "y": 1.1, "yanchor": "bottom"}
    return {
        "shapes": [shape],
        "annotations": [note],
        "legend": legend,
        "margin": {"l": 64, "r": 16, "t": 32, "b": 52},
    }


def _trace(curve: Curve, scale: int) -> dict[str, Any]:
    own = GREY if curve.role == "base" and curve.variant == "plain" else _COLOURS.get(curve.variant)
    colour = own or PALETTE[2 + sum(map(ord, curve.variant)) % (len(PALETTE) - 2)]
    drawn = [point for point in curve.points if math.isfinite(point.loss)]
    spread = [0.0 if math.isnan(point.spread) else point.spread for point in drawn]
    seeds = [f"{point.seeds} seed{'s' if point.seeds != 1 else ''}" for point in drawn]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": text(curve.label),
        "x": [point.lr for point in drawn],
        "y": numbers(point.loss for point in drawn),
        "error_y": {
            "type": "data",
            "array": numbers(spread),
            "thickness": 1,
            "width": 3,
            "visible": any(spread),
        },
        "line": {"color": colour, "width": 2, "dash": DASHES[scale % len(DASHES)]},
        "marker": {"size": 7, "symbol": _SYMBOLS[scale % len(_SYMBOLS)]},
        "customdata": seeds,
        "hovertemplate": f"<b>{text(curve.label)}</b><br>lr %{{x:.4~g}}: "
        "loss %{y:.5~g}, %{customdata}<extra></extra>",
    }


def _crosses(diverged: Sequence[tuple[Curve, LossPoint]], top: float) -> dict[str, Any]:
    words = [
        f"{text(curve.label)}: {point.diverged} of {point.diverged + point.seeds} diverged"
        for curve, point in diverged
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "diverged",
        "x": [point.lr for _, point in diverged],
        "y": [number(top)] * len(diverged),
        "marker": {"symbol": "x", "size": 9, "color": "#d1495b"},
        "customdata": words,
        "hovertemplate": "lr %{x:.4~g}<br>%{customdata}<extra></extra>",
    }
