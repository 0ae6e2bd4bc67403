"""How far one optimum lies from another, and how sure that is."""

from __future__ import annotations

import math

import pytest

from flerm_core.errors import NotFound
from flerm_core.tuning.best_lr import SweepRun
from flerm_core.tuning.optimum_shift import complete_curve, optimum_interval, shift

PLACES = range(-4, 5)


def bowl(optimum: float, seed: int = 0, places: range = PLACES) -> list[SweepRun]:
    return [SweepRun(lr=2.0**place, seed=seed, loss=1 + (place - optimum) ** 2) for place in places]


def test_the_shift_is_between_the_parabolas_vertices() -> None:
    found = shift(bowl(1.2), bowl(-0.3))
    assert found.octaves == pytest.approx(1.5, abs=1e-9)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_seeds_that_agree_give_an_interval_of_width_0() -> None:
    found = shift([*bowl(1.2), *bowl(1.2, 1)], [*bowl(-0.3), *bowl(-0.3, 1)])
    assert (found.octaves, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5), abs=1e-9)


def test_the_interval_spans_the_shifts_of_resampled_seeds() -> None:
    runs = [run for seed, optimum in enumerate((-0.4, 0.0, 0.4)) for run in bowl(optimum, seed)]
    found = shift(runs, [*bowl(0.0), *bowl(0.0, 1)])
    assert found.octaves == pytest.approx(0, abs=1e-9)
    # Means of three draws from (-0.4, 0, 0.4): the outermost has probability 1/27, the next,
    # ±0.8/3, 3/27.
    assert (found.low, found.high) == pytest.approx((-0.8 / 3, 0.8 / 3), abs=1e-6)
    assert shift(runs, [*bowl(0.0), *bowl(0.0, 1)]) == found, "the same every time"


def test_a_rate_that_only_some_seeds_ran_at_does_not_count() -> None:
    runs = [
        *bowl(0.0, 0),
        *(
            SweepRun(lr=run.lr, seed=1, loss=run.loss - 1)
            for run in bowl(0.0, 1, range(-2, 2))
            if run.loss
        ),
    ]
    assert [point.lr for point in complete_curve(runs)] == [2.0**place for place in range(-2, 2)]


def test_a_seed_that_diverged_at_a_rate_rules_that_rate_out() -> None:
    runs = [
        *bowl(0.0, 0),
        *bowl(0.0, 1, range(-4, 1)),
        *(SweepRun(lr=2.0**p, seed=1, loss=None, status="diverged") for p in (1, 2, 3, 4)),
    ]
    found = shift(runs, bowl(0.0))
    assert found.octaves == 0.0


def test_a_curve_without_a_finite_loss_has_no_optimum() -> None:
    with pytest.raises(NotFound, match="none of the curve's rates has a finite loss"):
        shift([SweepRun(lr=1.0, seed=0, loss=None, status="diverged")], bowl(0.0))


def test_a_seed_that_was_run_twice_at_a_rate_is_resampled_with_its_mean() -> None:
    again = [SweepRun(lr=1.0, seed=0, loss=9.0), SweepRun(lr=1.0, seed=0, loss=-7.0)]
    once = optimum_interval([*bowl(-0.3, 0), *bowl(0.3, 1)])
    found = optimum_interval([*bowl(-0.3, 0), *again, *bowl(0.3, 1)])
    assert (found.low, found.high) == pytest.approx((once.low, once.high), rel=0.1)


def test_the_optimum_does_not_lie_towards_a_rate_where_most_seeds_diverged() -> None:
    runs = [
        *(run for seed in range(3) for run in bowl(-0.3, seed, range(-2, 1))),
        *(SweepRun(lr=2.0, seed=seed, loss=None, status="diverged") for seed in (0, 1)),
        SweepRun(lr=2.0, seed=2, loss=0.5),
    ]
    assert shift(runs, bowl(0.0)).octaves == 0
