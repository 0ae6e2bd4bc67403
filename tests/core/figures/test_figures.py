"""Figures: what they draw, by exact values, and that names from outside cannot be markup."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flerm_core.errors import NotFound
from flerm_core.figures import (
    curves_of,
    fslr_figure,
    loss_figure,
    ratio_figure,
    run_figure,
    transfer_figure,
)
from flerm_core.records.queries import BestQuery
from flerm_core.records.recording import ParameterList, Recording, RecordingSpec
from flerm_core.trajectory import Trajectory
from flerm_core.tuning.best_lr import LossPoint, best_of

NAMES = [
    "layers.0.attn.q.weight",
    "layers.1.attn.q.weight",
    "layers.2.attn.q.weight",
    "readout.weight",
]
SHAPES = [(4, 4)] * 3 + [(2, 4)]
BANDS = ["query/key"] * 3 + ["readout"]


def trajectory(values, steps=None, **more) -> Trajectory:
    return Trajectory(
        NAMES,
        SHAPES,
        [1, 101][: len(values)] if steps is None else steps,
        values,
        bands=BANDS,
        **more,
    )


def by_name(figure, name: str):
    return next(trace for trace in figure["data"] if trace.get("name") == name)


def run(
    lr: float, loss: float | None, seed: int = 0, status: str = "completed", **spec
) -> Recording:
    listed = ParameterList((), (), ())
    return Recording(
        spec=RecordingSpec(family="f", lr=lr, seed=seed, parameters=listed, **spec),
        status=status,
        final_loss=loss,
    )


def test_a_band_is_a_median_line_with_a_ribbon_of_its_middle_80_percent():
    figure = fslr_figure(trajectory([[1, 2, 3, 7], [10, 20, 30, np.nan]]))
    low, high = figure["data"][:2]
    assert by_name(figure, "query/key (3)")["y"] == [2.0, 20.0]
    assert (low["y"], high["y"], high["fill"]) == ([1.2, 12.0], [2.8, 28.0], "tonexty")
    assert by_name(figure, "readout (1)")["y"] == [7.0, None]
    assert len(figure["data"]) == 4  # one tensor needs no ribbon
    assert figure["layout"]["yaxis"]["type"] == "log"


def test_zero_and_unmeasured_are_gaps_on_a_logarithmic_axis():
    figure = fslr_figure(trajectory([[0, 0, 0, 5], [np.nan, np.nan, np.nan, 5]]))
    assert by_name(figure, "query/key (3)")["y"] == [None, None]


def test_single_tensors_are_lines_of_their_own_whose_hover_names_them():
    line = by_name(fslr_figure(trajectory([[1, 2, 3, 7]]), [NAMES[1]]), NAMES[1])
    assert line["y"] == [2.0]
    assert NAMES[1] in line["hovertemplate"]
    with pytest.raises(NotFound, match="tensors: nothing not in the trajectory"):
        fslr_figure(trajectory([[1, 2, 3, 7]]), ["nothing"])


def test_groups_count_in_no_band():
    names = ["layers.0.w", "layers.1.w", "layers.*.w"]
    joint = Trajectory(names, [(2, 2), (2, 2), ()], [1], [[1, 3, 100]], bands=["feed-forward"] * 3)
    assert by_name(fslr_figure(joint), "feed-forward (2)")["y"] == [2.0]


def test_names_from_outside_are_text_not_markup():
    name = "<img src=x onerror=alert(1)>"
    evil = Trajectory([name], [(2, 2)], [1], [[1]], bands=["other"])
    drawn = json.dumps(fslr_figure(evil, [name]))
    assert "<img" not in drawn
    assert "&lt;img" in drawn
    curve = curves_of(
        [run(1e-3, 1.0, variant="<b>", config={"w": "<i>"}), run(1e-3, 1.0, config={"w": "x"})]
    )
    assert "<i>" not in json.dumps(loss_figure(curve))


def test_long_runs_are_thinned_to_400_rows_and_40_tensors():
    steps = np.arange(1, 10_001)
    names = [f"layers.{at}.w" for at in range(500)]
    values = np.ones((len(steps), 500), np.float32)
    long = Trajectory(names, [(4, 4)] * 500, steps, values, bands=["feed-forward"] * 500)
    figure = fslr_figure(long, names)
    assert {len(trace["x"]) for trace in figure["data"]} == {400}
    assert len(figure["data"]) == 3 + 40
    assert (figure["data"][0]["x"][0], figure["data"][0]["x"][-1]) == (1, 10_000)
    assert len(json.dumps(figure)) < 1_000_000


def test_loss_and_learning_rate_stand_on_axes_of_their_own():
    figure = run_figure(
        trajectory([[1] * 4, [1] * 4], losses=[2.5, np.nan], learning_rates=[1e-3, 5e-4])
    )
    assert by_name(figure, "loss")["y"] == [2.5, None]
    assert (by_name(figure, "learning rate")["y"], by_name(figure, "learning rate")["yaxis"]) == (
        [0.001, 0.0005],
        "y2",
    )


def test_what_is_not_there_is_said():
    assert "No measurement yet" in json.dumps(fslr_figure(trajectory([])))
    assert "flerm.log" in json.dumps(run_figure(trajectory([[1] * 4])))
    assert "No finished run" in json.dumps(loss_figure([]))
    groups = Trajectory(["layers.*.attn.q.weight"], [()], [1], [[2.0]])
    assert "Depth groups only" in json.dumps(fslr_figure(groups))
    assert [each["y"] for each in fslr_figure(groups, groups.names)["data"]] == [[2.0]]


def test_curves_are_told_apart_by_role_variant_and_the_settings_that_differ():
    runs = [run(1e-3, 2.0, config={"width": 32, "heads": 2})]
    runs += [
        run(1e-3, 1.0, role="scaled", config={"width": width, "heads": 2}) for width in (128, 64)
    ]
    runs += [run(1e-3, 0.5, role="scaled", variant="matched", config={"width": 64, "heads": 2})]
    assert [curve.label for curve in curves_of(runs)] == [
        "base, plain, width 32",
        "scaled, matched, width 64",
        "scaled, plain, width 64",
        "scaled, plain, width 128",
    ]
    implied = [
        run(1e-3, 1.0, seed=at, config={"parameters": 4096 * at, "width": at}) for at in (1, 2)
    ]
    assert [curve.scale for curve in curves_of(implied)] == ["width 1", "width 2"]
    assert [
        curve.scale
        for curve in curves_of(run(1e-3, 1.0, seed=at, config={"run": at}) for at in range(20))
    ] == [""]


def test_losses_have_their_spread_and_the_best_base_rate_is_marked():
    runs = [
        run(lr, loss + seed, seed)
        for lr, loss in ((1e-3, 3.0), (2e-3, 1.0), (4e-3, 2.0))
        for seed in (0, 1)
    ]
    runs.append(run(8e-3, None, status="diverged"))
    figure = loss_figure(curves_of(runs), best_of(runs, BestQuery(family="f")))
    curve = by_name(figure, "base, plain")
    assert (curve["x"], curve["y"]) == ([1e-3, 2e-3, 4e-3], [3.5, 1.5, 2.5])
    assert curve["error_y"]["array"] == [0.70711] * 3
    assert by_name(figure, "diverged")["customdata"] == ["base, plain: 1 of 1 diverged"]
    optimum = best_of(runs, BestQuery(family="f")).optimum
    assert figure["layout"]["shapes"][0]["x0"] == optimum == pytest.approx(2e-3 * 2 ** (1 / 6))
    assert figure["layout"]["annotations"][0]["text"] == "best base rate: 0.00224"
    assert figure["layout"]["xaxis"]["ticktext"] == ["0.001", "0.002", "0.004", "0.008"]


def test_the_mark_of_the_best_rate_stays_inside_the_figure():
    anchors = []
    for low in ((0, 1, 2), (1, 0, 2), (2, 1, 0)):
        runs = [run(lr, 1.0 + loss) for lr, loss in zip((1e-3, 2e-3, 4e-3), low, strict=True)]
        figure = loss_figure(curves_of(runs), best_of(runs, BestQuery(family="f")))
        anchors.append(figure["layout"]["annotations"][0]["xanchor"])
    assert anchors == ["left", "center", "right"]


def test_losses_far_apart_stand_on_a_logarithmic_axis():
    near, far = (loss_figure(curves_of([run(1e-3, 1.0), run(2e-3, high)])) for high in (19.0, 21.0))
    assert (near["layout"]["yaxis"]["type"], far["layout"]["yaxis"]["type"]) == ("linear", "log")


def test_the_ratio_figure_has_a_line_at_1():
    assert ratio_figure(trajectory([[1, 1, 1, 1]]))["layout"]["shapes"][0]["y0"] == 1


def test_a_notebook_gets_the_figure_and_a_table():
    shown = trajectory([[1, 2, 3, 7], [10, 20, 30, 70]])._repr_mimebundle_()
    assert set(shown) == {"application/vnd.plotly.v1+json", "text/html", "text/plain"}
    assert "<td>query/key</td><td>3</td><td>2</td><td>20</td>" in shown["text/html"]
    assert (
        shown["application/vnd.plotly.v1+json"]
        == trajectory([[1, 2, 3, 7], [10, 20, 30, 70]]).figure()
    )


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
