"""The figure of loss against learning rate, and the curves in it."""

from __future__ import annotations

import pytest

from flerm_core.figures import (
    curves_of,
    loss_figure,
)
from flerm_core.records.queries import BestQuery
from flerm_core.tuning.best_lr import best_of
from tests.core.samples import by_name, run


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
