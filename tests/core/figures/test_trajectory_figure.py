"""Figures of one run: FSLRs by band over steps, loss and learning rate."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flerm_core.errors import NotFound
from flerm_core.figures import (
    fslr_figure,
    run_figure,
)
from flerm_core.trajectory import Trajectory
from tests.core.samples import NAMES, by_name, trajectory


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


def test_depth_groups_count_in_no_band():
    names = ["layers.0.w", "layers.1.w", "layers.*.w"]
    joint = Trajectory(names, [(2, 2), (2, 2), ()], [1], [[1, 3, 100]], bands=["feed-forward"] * 3)
    assert by_name(fslr_figure(joint), "feed-forward (2)")["y"] == [2.0]


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
