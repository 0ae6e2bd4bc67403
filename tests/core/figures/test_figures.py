"""What all figures have in common: escaped names, and a sentence where nothing can be drawn."""

from __future__ import annotations

import json

from flerm_core.figures import (
    fslr_figure,
    run_figure,
    transfer_figure,
)
from flerm_core.trajectory import Trajectory
from flerm_core.tuning.best_lr import LossPoint
from tests.core.samples import trajectory


def test_names_from_outside_are_text_not_markup():
    name = "<img src=x onerror=alert(1)>"
    evil = Trajectory([name], [(2, 2)], [1], [[1]], bands=["other"])
    drawn = json.dumps(fslr_figure(evil, [name]))
    assert "<img" not in drawn
    assert "&lt;img" in drawn
    points = [LossPoint(lr=1e-3, loss=1.0, spread=0.1, seeds=2, diverged=1)] * 2
    drawn = json.dumps(transfer_figure({"<u>": {"<i>": points}}))
    assert "<i>" not in drawn
    assert "<u>" not in drawn


def test_a_figure_without_data_says_what_is_missing():
    assert "No measurement yet" in json.dumps(fslr_figure(trajectory([])))
    assert "flerm.log" in json.dumps(run_figure(trajectory([[1] * 4])))
    assert "No run with a final loss" in json.dumps(transfer_figure({}))
    groups = Trajectory(["layers.*.attn.q.weight"], [()], [1], [[2.0]])
    assert "Depth groups only" in json.dumps(fslr_figure(groups))
    assert [each["y"] for each in fslr_figure(groups, groups.names)["data"]] == [[2.0]]
