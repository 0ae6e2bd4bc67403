"""The figure of losses at several scales, in panels."""

from __future__ import annotations

import math

import pytest

from flerm_core.figures import transfer_figure
from flerm_core.tuning.best_lr import LossPoint


def losses_at(optimum: float, places: range = range(-9, -2)) -> list[LossPoint]:
    return [
        LossPoint(lr=2.0**place, loss=1 + (place - optimum) ** 2, spread=0.2, seeds=4, diverged=0)
        for place in places
    ]


def test_panels_share_losses_and_colours_and_the_bases_optimum_goes_through_all() -> None:
    curves = {
        "plain": {"base": losses_at(-6.3), "width ×4": losses_at(-8.1)},
        "matched": {"base": losses_at(-6.3)},
        "mup": {"width ×4": losses_at(-5.0)},
    }
    figure = transfer_figure(curves)
    names = [(trace["name"], trace["xaxis"]) for trace in figure["data"]]
    assert names == [("base", "x"), ("width ×4", "x"), ("base", "x2"), ("width ×4", "x3")]
    assert figure["data"][0]["line"] == figure["data"][2]["line"]
    assert figure["data"][1]["line"] == figure["data"][3]["line"] != figure["data"][0]["line"]
    lines = [(round(shape["x0"], 6), shape["xref"]) for shape in figure["layout"]["shapes"]]
    assert lines == [(round(2.0**-6.3, 6), f"x{at}") for at in ("", 2, 3)]
    ranges = {str(figure["layout"][f"yaxis{at}"]["range"]) for at in ("", 2, 3)}
    assert len(ranges) == 1
    assert figure["data"][0]["error_y"]["array"][0] == 0.1, "of the mean over four seeds"


def test_error_bars_of_low_losses_are_whole_and_those_far_up_stretch_nothing() -> None:
    best = LossPoint(lr=2.0**-6, loss=2.0, spread=0.4, seeds=4, diverged=0)
    beside = [
        LossPoint(lr=2.0**place, loss=2.1, spread=0.0, seeds=4, diverged=0) for place in (-7, -5)
    ]
    far = LossPoint(lr=2.0**-4, loss=9.0, spread=20.0, seeds=4, diverged=0)
    figure = transfer_figure({"plain": {"base": [beside[0], best, beside[1], far]}})
    low, high = figure["layout"]["yaxis"]["range"]
    assert low == pytest.approx(1.8)
    assert 2.1 < high < 2.3


def test_every_curve_has_its_label_beside_it_and_none_lies_over_another() -> None:
    its = losses_at(-6, range(-7, -4))
    figure = transfer_figure({"plain": {"base": its, "×2": its, "×4": its}})
    assert figure["layout"]["showlegend"] is False
    notes = figure["layout"]["annotations"]
    assert [note["text"] for note in notes] == ["<b>plain</b>", "base", "×2", "×4"]
    assert [note["yshift"] for note in notes[1:]] == [0, 15, 30]
    colours = [trace["line"]["color"] for trace in figure["data"]]
    assert [note["font"]["color"] for note in notes[1:]] == colours


def test_a_scale_of_two_settings_has_two_lines_and_stands_above_the_left_end() -> None:
    """A curve that leaves the panel at its right is labelled at its left, where there is no room
    beside it.
    """
    falls = losses_at(-11.8, range(-13, -9))
    rises = [LossPoint(lr=0.125, loss=90.0, spread=0.2, seeds=4, diverged=0)]
    curves = {"base": losses_at(-6), "width ×4, depth ×4": [*falls, *rises]}
    notes = transfer_figure({"plain": curves})["layout"]["annotations"]
    [label] = [each for each in notes if "width" in each["text"]]
    assert label["text"] == "width ×4,<br>depth ×4"
    assert (label["xanchor"], label["yanchor"]) == ("left", "bottom")


def test_a_label_at_the_left_of_a_narrow_panel_does_not_lie_over_the_axis() -> None:
    falls = losses_at(-8.8, range(-10, -6))
    rises = [LossPoint(lr=0.125, loss=90.0, spread=0.2, seeds=4, diverged=0)]
    curves = {"base": losses_at(-8), "depth ×8": [*falls, *rises]}

    def anchor(panels: int) -> str:
        figure = transfer_figure({str(at): curves for at in range(panels)})
        notes = figure["layout"]["annotations"]
        return next(note["xanchor"] for note in notes if note["text"] == "depth ×8")

    assert [anchor(1), anchor(4)] == ["right", "left"]


def test_a_long_name_is_cut_where_it_would_not_fit() -> None:
    notes = transfer_figure({"v" * 60: {"base": losses_at(-6)}})["layout"]["annotations"]
    assert [note["text"] for note in notes] == [f"<b>{'v' * 29}…</b>", "base"]


def test_panels_stand_in_rows_of_so_many_columns() -> None:
    curves = {str(at): {"base": losses_at(-6)} for at in range(3)}
    layout = transfer_figure(curves, columns=1)["layout"]
    bottoms = [layout[f"yaxis{at}"]["domain"][0] for at in ("", 2, 3)]
    assert bottoms == sorted(bottoms, reverse=True)
    assert [layout[f"xaxis{at}"]["domain"] for at in ("", 2, 3)] == [[0, 1]] * 3


def test_all_panels_have_the_same_rates_below_them_and_none_lies_over_another() -> None:
    wide = {"base": losses_at(-9, range(-11, -7)), "×16": losses_at(-2, range(-10, 0))}
    layout = transfer_figure({"plain": wide, "matched": {"base": wide["base"]}})["layout"]
    first, second = layout["xaxis"], layout["xaxis2"]
    assert first["tickvals"] == second["tickvals"]
    assert first["tickvals"] == pytest.approx([2.0**-11, 2.0**-8, 2.0**-5, 2.0**-2], rel=1e-4)
    assert first["range"] == second["range"]


def test_transfer_figures_show_the_optima_and_not_what_is_far_off() -> None:
    far = [LossPoint(lr=1.0, loss=99.0, spread=float("nan"), seeds=1, diverged=0)]
    figure = transfer_figure({"plain": {"base": [*losses_at(-6), *far]}})
    assert figure["layout"]["yaxis"]["range"][1] < 3
    octaves = [end / math.log10(2) for end in figure["layout"]["xaxis"]["range"]]
    assert octaves == pytest.approx([-8.2, -3.8], abs=1e-3)


def test_transfer_figures_leave_out_what_diverged_and_say_when_nothing_is_there() -> None:
    lost = LossPoint(lr=2.0**-2, loss=float("nan"), spread=float("nan"), seeds=0, diverged=2)
    assert len(transfer_figure({"plain": {"base": [*losses_at(-6), lost]}})["data"][0]["x"]) == 7
    assert transfer_figure({})["layout"]["annotations"][0]["text"] == "No run with a final loss yet"
