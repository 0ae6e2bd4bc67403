"""Properties for any shape, dtype and parameter groups: rates, weights and FSLRs."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from exact_reference import at_old, exact_fslr, random_update
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from flerm_client.training.measured_model import make_measured_model
from flerm_client.training.param_groups import ScaledParamGroups
from flerm_client.training.signal_deferral import SignalDeferral
from flerm_client.training.step_schedule import StepSchedule
from flerm_core.measure.distributed.ranks import MeasurementRanks
from flerm_core.measure.estimators.registry import make_estimator
from flerm_core.measure.fslr_meter import FSLRMeter
from flerm_core.measure.update.weight_update import WeightUpdate

SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
FACTORS = st.integers(-64, 64).map(lambda k: 2.0 ** (k / 16))
cheap = settings(max_examples=30, deadline=None)


@cheap
@given(
    st.lists(st.lists(FACTORS, min_size=1, max_size=6), min_size=1, max_size=3),
    st.booleans(),
    st.lists(st.floats(1e-6, 1.0), min_size=3, max_size=3),
)
def test_inside_a_step_every_tensor_has_its_rate_and_outside_the_user_sees_nothing(
    groups: list[list[float]], independent: bool, rates: list[float]
) -> None:
    tensors = [[nn.Parameter(torch.ones(2)) for _ in group] for group in groups]
    optimizer = AdamW(
        [{"params": group, "lr": rate} for group, rate in zip(tensors, rates, strict=False)],
        weight_decay=0.1,
    )
    names = {id(p): f"{i}.{j}" for i, group in enumerate(tensors) for j, p in enumerate(group)}
    multipliers = {f"{i}.{j}": m for i, group in enumerate(groups) for j, m in enumerate(group)}
    theirs, held = optimizer.param_groups, [dict(group) for group in optimizer.param_groups]
    ours = ScaledParamGroups(optimizer, names, independent_decay=independent)
    for scale in (1.0, 0.5):  # a scheduler in between
        for group, before in zip(theirs, held, strict=True):
            group["lr"] = before["lr"] = group["lr"] * scale

        def step() -> None:
            seen = {
                names[id(p)]: group for group in optimizer.param_groups for p in group["params"]
            }
            assert (
                sum(len(group["params"]) for group in optimizer.param_groups)
                == len(seen)
                == len(multipliers)
            )
            for name, group in seen.items():
                user = theirs[int(name[0])]
                assert group["lr"] == user["lr"] * multipliers[name]
                decay = user["lr"] * 0.1 * (1.0 if independent else multipliers[name])
                assert group["lr"] * group["weight_decay"] == pytest.approx(decay)
                assert group["betas"] == user["betas"]

        with SignalDeferral() as signals:
            ours.run_step(step, (), {}, multipliers, lambda: None, signals)
        assert optimizer.param_groups is theirs
        assert [dict(group) for group in theirs] == held


@cheap
@given(
    SHAPES,
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    FACTORS,
    st.integers(0, 99),
)
def test_old_and_new_weights_are_swapped_bit_for_bit_and_a_step_is_reapplied(
    shape: tuple[int, ...], dtype: torch.dtype, factor: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
    old = weight.detach().clone()
    update = WeightUpdate({"w": weight})
    update.rates = {"w": 0.5}
    weight.data.add_(torch.randn(shape, generator=generator).to(dtype))
    new = weight.detach().clone()
    wide = torch.promote_types(dtype, torch.float32)
    change = update.change("w")
    assert change.dtype == wide and torch.equal(change, (new.to(wide) - old.to(wide)) / 0.5)
    with update.at_old_weights():
        assert torch.equal(weight, old) and torch.equal(update.change("w"), change)
    assert torch.equal(weight, new)
    update.reapply({"w": factor})
    expected = (
        new if factor == 1.0 else ((new.to(wide) - old.to(wide)) * factor + old.to(wide)).to(dtype)
    )
    assert torch.equal(weight, expected)


class Shaped(nn.Module):
    """Matrices of any width, a vector, and a scalar that no module holds."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=b % 2 == 0) for a, b in pairwise(widths))
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x) * self.scale)
        return x


@settings(max_examples=5, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=4), st.integers(1, 5), st.integers(0, 99))
def test_example_and_exact_find_the_fslr_at_any_width(
    widths: list[int], examples: int, seed: int
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Shaped(widths).double()
        batch = torch.randn(examples, widths[0], dtype=torch.float64)
    update, changes = random_update(model, seed=seed)
    reference = exact_fslr(at_old(model, changes), changes, [batch])
    measured_model = make_measured_model(
        model, [SGD(model.parameters())], None, None, MeasurementRanks(single_process=True)
    )

    def measured(estimator: str, draws: int) -> dict[str, float]:
        meter = FSLRMeter(
            measured_model,
            make_estimator(estimator, measured_model),
            MeasurementRanks(single_process=True),
        )
        found = meter.measure(update, iter([batch] * draws), draws)
        return {name: found[name] for name in reference}

    assert measured("exact", 1) == pytest.approx(reference, rel=1e-6)
    # Σ c² over N examples and d draws has a relative deviation of at most √(2/Nd); its root
    # has half of that.
    assert measured("example", 32) == pytest.approx(reference, rel=5 * math.sqrt(0.5 / 32))


@cheap
@given(st.integers(1, 20), st.integers(0, 20), st.sets(st.integers(1, 60)))
def test_a_step_schedule_keeps_its_grid_whatever_steps_are_missed(
    start: int, every: int, missed: set[int]
) -> None:
    schedule, seen = StepSchedule(start, every), []
    for step in range(1, 61):
        if schedule.due(step) and step not in missed:
            schedule.done(step)
            seen.append(step)
    grid: Any = range(start, 61, every) if every else [start] * (start <= 60)
    for period, begin in enumerate(grid):
        end = grid[period + 1] if period + 1 < len(grid) else 61
        attempts = [step for step in range(begin, end) if step not in missed]
        assert [step for step in seen if begin <= step < end] == attempts[:1]
    assert all(step >= start for step in seen)
