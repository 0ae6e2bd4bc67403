"""The targets of a run come from a query, a trajectory or FSLRs by name."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from measured_runs import (
    UNIT_TARGETS,
    fresh,
    probe,
)
from torch import Tensor, nn
from torch.optim import SGD, Adam

from flerm_client import FLeRM, RegistryClient
from flerm_client.training.run_options import MatchOptions
from flerm_client.training.target_clock import TargetClock
from flerm_client.training.target_schedule import TargetSchedule
from flerm_core import Trajectory
from flerm_core.errors import InvalidInput
from flerm_core.matching.targets import Targets
from flerm_core.records.queries import TargetQuery


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
    query = TargetQuery(family="f", lr=0.1, names=("a", "b"))
    return TargetSchedule.from_user(MatchOptions(**given | options), query, TargetClock())


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


def layered(width: int, depth: int) -> nn.Module:
    layers = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))
    return nn.ModuleDict(
        {"enter": nn.Linear(4, width), "layers": layers, "leave": nn.Linear(width, 2)}
    )


def through(model: nn.Module, batch: Tensor) -> Tensor:
    out: Tensor = model["leave"](model["layers"](model["enter"](batch)))  # type: ignore[index]
    return out


def answer_of_base(tmp_path: Path, depth: int = 2) -> tuple[Targets, Trajectory]:
    """The targets of a base that Adam trained, asked for without the names of another model."""
    registry = f"file://{tmp_path}/registry"
    model = layered(4, depth)
    with FLeRM.record(
        model, optimizer := Adam(model.parameters(), 1e-2),
        probe=[torch.randn(8, 4)], output=through, family="f", registry=registry,
    ) as flerm:  # fmt: skip
        through(model, torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
    with RegistryClient(registry) as client:
        return client.targets("f", 1e-2), flerm.trajectory


def match_to(
    targets: Targets | Trajectory | dict[str, float], model: nn.Module, **options: Any
) -> FLeRM:
    kind = options.pop("kind", Adam)
    return FLeRM.match(
        model, kind(model.parameters(), 1e-2), probe=[torch.randn(8, 4)], output=through,
        family="f", targets=targets, **options,
    )  # fmt: skip


def test_an_answer_about_another_optimizer_is_refused(tmp_path: Path) -> None:
    answer, _ = answer_of_base(tmp_path)
    with pytest.raises(InvalidInput, match=r"optimizer: the model's is SGD, the targets' Adam"):
        match_to(answer, layered(8, 2), kind=SGD)
    with pytest.raises(InvalidInput, match=r"betas is \[0\.8, 0\.9\] for the model"):
        match_to(answer, layered(8, 2), kind=lambda its, lr: Adam(its, lr, betas=(0.8, 0.9)))
    match_to(dict(answer), layered(8, 2), kind=SGD).close()
    match_to(answer, layered(8, 2)).close()


def test_an_answer_about_another_depth_is_refused_before_training(tmp_path: Path) -> None:
    answer, _ = answer_of_base(tmp_path)
    with pytest.raises(InvalidInput, match=r"no value for layers\.2\.weight, layers\.2\.bias"):
        match_to(answer, layered(8, 3))
    with pytest.raises(InvalidInput, match=r"another number of blocks along layers\.\*: ask for"):
        match_to(answer, layered(8, 1))


def test_an_answer_about_another_rate_is_refused(tmp_path: Path) -> None:
    answer, _ = answer_of_base(tmp_path)
    with pytest.raises(InvalidInput, match=r"lr=0\.5, but targets is of the base at 0\.01"):
        match_to(answer, layered(8, 2), lr=0.5)
    match_to(answer, layered(8, 2), lr=1e-2).close()


def test_a_trajectory_of_tensors_with_other_dimensions_is_refused(tmp_path: Path) -> None:
    _, base = answer_of_base(tmp_path)
    model = layered(8, 2)
    model["layers"][0] = nn.LayerNorm(8)  # type: ignore[index, operator]
    with pytest.raises(InvalidInput, match=r"'layers\.0\.weight' has 1 dimensions \(\[8\]\)"):
        match_to(base, model)
