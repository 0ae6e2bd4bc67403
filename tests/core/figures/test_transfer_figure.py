"""The figure of losses at several scales, in panels."""

from __future__ import annotations

from flerm_core.figures import (
    transfer_figure,
)
from flerm_core.tuning.best_lr import LossPoint


def losses_at(optimum: float, places: range = range(-9, -2)) -> list[LossPoint]:
    return [
        LossPoint(lr=2.0**place, loss=1 + (place - optimum) ** 2, spread=0.2, seeds=4, diverged=0)
        for place in places
    ]


def test_transfer_panels_share_losses_and_colours_and_mark_the_bases_optimum() -> None:
    curves = {
        "plain": {"base": losses_at(-6.3), "width ×4": losses_at(-8.1)},
        "matched": {"base": losses_at(-6.3)},
    }
    figure = transfer_figure(curves)
    names = [(trace["name"], trace["xaxis"], trace["showlegend"]) for trace in figure["data"]]
    assert names == [("base", "x", True), ("width ×4", "x", True), ("base", "x2", False)]
    assert figure["data"][0]["line"] == figure["data"][2]["line"]
    assert [(shape["x0"], shape["xref"]) for shape in figure["layout"]["shapes"]] == [
        (-6.3, "x"),
        (-6.3, "x2"),
    ]
    assert [note["text"] for note in figure["layout"]["annotations"]] == ["plain", "matched"]
    assert figure["data"][0]["error_y"]["array"][0] == 0.1, "of the mean over four seeds"


def test_transfer_figures_show_the_optima_and_not_what_is_far_off() -> None:
    far = [LossPoint(lr=1.0, loss=99.0, spread=float("nan"), seeds=1, diverged=0)]
    figure = transfer_figure({"plain": {"base": [*losses_at(-6), *far]}})
    assert figure["layout"]["yaxis"]["range"][1] < 3
    assert figure["layout"]["xaxis"]["range"] == [-8.2, -3.8]


def test_transfer_figures_leave_out_what_diverged_and_say_when_nothing_is_there() -> None:
    lost = LossPoint(lr=2.0**-2, loss=float("nan"), spread=float("nan"), seeds=0, diverged=2)
    assert len(transfer_figure({"plain": {"base": [*losses_at(-6), lost]}})["data"][0]["x"]) == 7
    assert transfer_figure({})["layout"]["annotations"][0]["text"] == "No settled curve yet"
