"""What all figures have in common: escaped names, and a sentence where nothing can be drawn."""

from __future__ import annotations

import json

from flerm_core.figures import (
    curves_of,
    fslr_figure,
    loss_figure,
    run_figure,
)
from flerm_core.trajectory import Trajectory
from tests.core.samples import run, trajectory


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


def test_a_figure_without_data_says_what_is_missing():
    assert "No measurement yet" in json.dumps(fslr_figure(trajectory([])))
    assert "flerm.log" in json.dumps(run_figure(trajectory([[1] * 4])))
    assert "No finished run" in json.dumps(loss_figure([]))
    groups = Trajectory(["layers.*.attn.q.weight"], [()], [1], [[2.0]])
    assert "Depth groups only" in json.dumps(fslr_figure(groups))
    assert [each["y"] for each in fslr_figure(groups, groups.names)["data"]] == [[2.0]]
