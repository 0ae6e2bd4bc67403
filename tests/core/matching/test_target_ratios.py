"""FSLRs of one recording over the targets that another gives."""

from __future__ import annotations

import math

import numpy as np
import pytest

from flerm_core.errors import NotFound
from flerm_core.matching.target_ratios import target_ratios
from flerm_core.trajectory import Trajectory
from tests.core.samples import trajectory


def test_a_matched_run_has_ratio_1_and_a_deeper_one_is_compared_with_its_targets():
    base = trajectory([[1, 2, 3, 8], [2, 4, 6, 16]])
    same = target_ratios(base, trajectory([[1, 2, 3, 8], [4, 8, 12, 32]]))
    assert same.values.tolist() == [[1, 1, 1, 1], [2, 2, 2, 2]]
    names = [f"layers.{at}.attn.q.weight" for at in range(6)] + ["readout.weight"]
    deep = Trajectory(names, [(4, 4)] * 6 + [(2, 4)], [1], [[0.5, 0.5, 1, 1, 1.5, np.nan, 8]])
    found = target_ratios(base, deep).values[0].tolist()
    assert found[:5] == [1, 1, 1, 1, 1]
    assert math.isnan(found[5])


def test_models_that_do_not_correspond_are_refused_by_name():
    other = Trajectory(["conv.weight"], [(3, 3)], [1], [[1]])
    with pytest.raises(NotFound, match=r"conv\.weight"):
        target_ratios(trajectory([[1] * 4]), other)


def test_depth_groups_alone_leave_nothing_to_compare():
    groups = Trajectory(["layers.*.attn.q.weight"], [()], [1], [[2.0]])
    with pytest.raises(NotFound, match="are depth groups; there is no tensor to compare"):
        target_ratios(groups, groups)
