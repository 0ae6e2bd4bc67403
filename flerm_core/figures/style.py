"""What all figures share: colours, axes, numbers and text."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from typing import Any

from flerm_core.parameter_bands import BANDS

Figure = dict[str, Any]
"""A plotly figure: its traces under `data`, its axes and legend under `layout`; nothing but JSON.
"""

# Middle tones, with a contrast of at least 3:1 against white and against near-black, so that one
# figure can be read on light and dark pages. Eleven colours of so similar lightness cannot all be
# told apart by people with protanopia, deuteranopia or tritanopia. So bands of one kind share a
# dash pattern, and only their colours need to differ for everyone
# (tests/core/figures/test_style.py).
PALETTE = (
    "#537def",
    "#c27d5a",
    "#318e09",
    "#ad4f53",
    "#7e5bbc",
    "#159fac",
    "#a68a34",
    "#cd467b",
    "#707e41",
    "#1b7ba8",
    "#7f8793",
)
GREY = "#7f8793"
# From small to big scales: one path through hues of like lightness, for the same contrast.
SEQUENTIAL = ("#a8842c", "#c27048", "#c25a74", "#a75fb0", "#7a6fd6", "#3f82d6")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
BAND_COLOURS = dict(zip(BANDS, PALETTE, strict=True))
_KINDS = (
    {"query/key", "value/output", "feed-forward"},
    {"input", "embedding", "readout"},
    {"norm", "bias"},
    {"LoRA A", "LoRA B"},
    {"other"},
)
BAND_DASHES = {band: dash for dash, kind in zip(DASHES, _KINDS, strict=True) for band in kind}
GRID = "rgba(128,128,128,0.22)"
TEXT = "#737b86"
DIGITS = 5
SIZE = 13  # of text, in pixels


def sequential(count: int) -> list[str]:
    """`count` colours of `SEQUENTIAL` in its order, spread over all of it; of more than there are
    the last repeats.
    """
    last = len(SEQUENTIAL) - 1
    return [SEQUENTIAL[min(round(at * last / max(count - 1, 1)), last)] for at in range(count)]


def number(value: float) -> float | None:
    """A value as a figure carries it: five digits; None, which is a gap, for what is not finite."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def numbers(values: Iterable[float]) -> list[float | None]:
    """Values as a trace carries them."""
    return [number(value) for value in values]


def positive(values: Iterable[float]) -> list[float | None]:
    """Values as a trace on a logarithmic axis carries them: what is not above 0 is a gap."""
    return [number(value) if value > 0 else None for value in values]


def text(words: str) -> str:
    """Text from outside, escaped for plotly.

    Plotly reads tags and some entities (not those of quotes), and writes no text into attributes.
    """
    return html.escape(words, quote=False)


def see_through(colour: str, opacity: float) -> str:
    """`#rrggbb` as rgba()."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"


def axis(title: str, *, log: bool = False, **more: Any) -> dict[str, Any]:
    """One axis."""
    # Without a format plotly writes 20 as a small 2.
    scale = {"type": "log", "tickformat": "~g"} if log else {"type": "linear"}
    name = {"text": title, "standoff": 12, "font": {"size": SIZE}}
    plain = {"title": name, "gridcolor": GRID, "zeroline": False, "automargin": True}
    return {**plain, **scale, **more}


def log_axis(title: str, traces: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """A logarithmic axis for the `y` of traces.

    Its labels are at 1, 2 and 5 over few decades, at powers of ten over many.
    """
    values = [value for trace in traces for value in trace["y"] if value is not None]
    # As many labels as make plotly choose so, here and where one zooms in; with a few more it would
    # write every digit, and 7, 8 and 9 over each other.
    few = not values or math.log10(max(values) / min(values)) < 1.2
    return axis(title, log=True, nticks=3 if few else 4)


def layout(x: dict[str, Any], y: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Axes, legend and background. The size is the container's."""
    return {
        "xaxis": x,
        "yaxis": y,
        "autosize": True,
        "margin": {"l": 64, "r": 16, "t": 16, "b": 52},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": SIZE, "color": TEXT},
        "hoverlabel": {"namelength": -1},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        **more,
    }


def nothing(words: str) -> Figure:
    """A figure without data that says why."""
    note = {
        "text": text(words),
        "showarrow": False,
        "x": 0.5,
        "y": 0.5,
        "xref": "paper",
        "yref": "paper",
    }
    hidden = {"visible": False}
    return {"data": [], "layout": layout(hidden, hidden, annotations=[note])}
