"""The targets of a run come from a query, a trajectory or FSLRs by name."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest
from measured_runs import (
    UNIT_TARGETS,
    fresh,
    probe,
)
from torch.optim import (
    SGD,
)

from flerm_client import FLeRM
from flerm_client.training.run_options import MatchOptions
from flerm_client.training.target_clock import TargetClock
from flerm_client.training.target_schedule import TargetSchedule
from flerm_core import Trajectory
from flerm_core.errors import InvalidInput


def test_targets_that_miss_a_tensor_are_refused_by_name() -> None:
    model, _ = fresh("resmlp")
    some = {name: 1.0 for name in UNIT_TARGETS if name != "readout.bias"}
    with pytest.raises(
        InvalidInput, match=r"targets has no value for readout\.bias; it has input\.weight"
    ):
        FLeRM.match(model, SGD(model.parameters(), 1e-2), probe=probe(), family="f", targets=some)


BASE = Trajectory(["a", "b"], [(2,), (3,)], [1, 3], [[1.0, math.nan], [4.0, 2.0]])


def schedule_of(source: Any, **options: Any) -> TargetSchedule:
    given = dict.fromkeys(each.name for each in fields(MatchOptions))
    given |= {"targets": source, "family": "f", "clamp": (0.5, 2.0), "depth": "split"}
    return TargetSchedule.from_user(MatchOptions(**given | options), ["a", "b"], 0.1, TargetClock())


def test_fslrs_by_name_hold_at_every_step() -> None:
    schedule = schedule_of({"a": 1.5, "b": 3.0, "other": 1.0})
    assert schedule.targets_at(1.0) == schedule.targets_at(500.0) == {"a": 1.5, "b": 3.0}
    assert schedule.registry_answer is None


def test_a_trajectory_is_read_at_the_bases_step() -> None:
    schedule = schedule_of(BASE)
    assert schedule.base_step(2, None) == 2.0
    assert schedule.targets_at(2.0)["a"] == pytest.approx(2.0)
    assert schedule.targets_at(9.0) == {"a": 4.0, "b": 2.0}
    assert schedule.registry_answer is None


def test_before_its_first_measurement_a_tensors_target_is_that_measurement() -> None:
    assert schedule_of(BASE).targets_at(1.0) == {"a": 1.0, "b": 2.0}


@pytest.mark.parametrize("source", [BASE, {"a": 1.5, "b": 3.0}], ids=["trajectory", "by name"])
def test_a_checkpoint_brings_the_targets_and_the_clock_back(source: Any) -> None:
    first, other = schedule_of(source), schedule_of({"a": 9.0, "b": 9.0})
    other.load_state_dict(first.state_dict())
    assert other.targets_at(2.0) == first.targets_at(2.0)
    assert other.clock == first.clock


def test_a_negative_fslr_is_refused_before_training() -> None:
    with pytest.raises(InvalidInput, match=r"targets: -1\.0 for 'b'; allowed are numbers from 0"):
        schedule_of({"a": 1.0, "b": -1.0})


def test_multipliers_are_within_the_clamp_and_other_tensors_keep_theirs() -> None:
    schedule = schedule_of({"a": 8.0, "b": 3.0})
    outcome = schedule.multipliers(1.0, {"a": 1.0, "b": 2.0}, {"b": 1.25}, only=["a"])
    assert outcome.values == {"a": 2.0, "b": 1.25}
    assert outcome.clamped == ("a",)
