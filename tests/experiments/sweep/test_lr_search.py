"""Which rates a curve needs: three where its optimum is expected, one more for each octave that the
expectation is off."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flerm_experiments.sweep.lr_search import FARTHEST, best_index, runs_to_train


def train_until_settled(
    loss: Callable[[int, int], float],
    seeds: int = 1,
    expected: int = 0,
    required: tuple[int, ...] = (),
) -> dict:
    """Trains what the search asks for until the curve is settled; returns all losses."""
    losses: dict[tuple[int, int], float] = {}
    while missing := runs_to_train(losses, seeds, expected, required):
        lr_index, seed = missing[0]
        assert (lr_index, seed) not in losses
        losses[lr_index, seed] = loss(lr_index, seed)
    return losses


def bowl(optimum: float) -> Callable[[int, int], float]:
    return lambda lr_index, seed: (lr_index - optimum) ** 2 + seed


def test_an_optimum_that_was_expected_costs_three_trainings() -> None:
    assert set(train_until_settled(bowl(0.3))) == {(-1, 0), (0, 0), (1, 0)}


@pytest.mark.parametrize(("optimum", "cost"), [(1.0, 4), (2.0, 5), (-3.0, 6)])
def test_each_octave_of_error_costs_one_more_training(optimum: float, cost: int) -> None:
    assert len(train_until_settled(bowl(optimum))) == cost


@given(st.integers(-10, 10), st.integers(-5, 5), st.integers(1, 3))
def test_the_best_ends_between_two_neighbours_that_every_seed_has(
    optimum: int, expected: int, seeds: int
) -> None:
    losses = train_until_settled(bowl(optimum), seeds, expected)
    best = best_index(losses, seeds)
    assert best == optimum
    assert {
        (lr_index, seed) for lr_index in (best - 1, best, best + 1) for seed in range(seeds)
    } <= set(losses)


def test_later_seeds_begin_at_what_the_first_found() -> None:
    losses = train_until_settled(bowl(3), seeds=3)
    assert sorted(lr_index for lr_index, seed in losses if seed == 1) == [2, 3, 4]
    assert sorted(lr_index for lr_index, seed in losses if seed == 2) == [2, 3, 4]


def test_a_later_seed_that_moves_the_mean_widens_the_curve_for_all() -> None:
    losses = train_until_settled(lambda lr_index, seed: (lr_index - 8 * seed) ** 2, seeds=2)
    assert best_index(losses, 2) == 4
    assert {(lr_index, seed) for lr_index in (3, 4, 5) for seed in (0, 1)} <= set(losses)


def test_a_required_rate_is_trained_with_every_seed() -> None:
    losses = train_until_settled(bowl(0), seeds=2, required=(6,))
    assert {(6, 0), (6, 1)} <= set(losses)
    assert best_index(losses, 2) == 0


def test_divergence_bounds_a_curve_from_above() -> None:
    losses = train_until_settled(lambda lr_index, _: math.inf if lr_index > 1 else -float(lr_index))
    assert best_index(losses, 1) == 1
    assert max(losses) == (2, 0)


def test_where_everything_diverges_the_search_goes_down_and_ends() -> None:
    losses = train_until_settled(lambda lr_index, _: math.inf)
    assert min(losses) == (-FARTHEST, 0)
