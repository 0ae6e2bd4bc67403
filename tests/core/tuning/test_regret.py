"""Regret and cost: the loss at the base's rate over the lowest of all variants, and of plain
training, seed by seed."""

from __future__ import annotations

import math

import pytest

from flerm_core.tuning.best_lr import SweepRun, losses_by_rate
from flerm_core.tuning.regret import cost, regret


def test_the_lowest_loss_of_any_variant_at_any_rate_is_compared() -> None:
    matched = {0.1: {0: 2.0}, 0.2: {0: 1.9}}
    plain = {0.1: {0: 9.0}, 0.05: {0: 1.6}}
    assert regret(matched, 0.1, [matched, plain]).value == pytest.approx(2.0 / 1.6 - 1)
    assert regret(plain, 0.1, [matched, plain]).value == pytest.approx(9.0 / 1.6 - 1)


def test_the_best_at_the_bases_rate_has_none() -> None:
    matched = {0.1: {0: 1.5}, 0.2: {0: 1.9}}
    found = regret(matched, 0.1 * (1 + 1e-12), [matched])
    assert found.value == 0
    assert math.isnan(found.low)


def test_losses_are_compared_over_the_seeds_that_both_have() -> None:
    # Seed 1 has the higher level; over seed 0 alone the other variant is 1 % better.
    matched = {0.1: {0: 1.01, 1: 2.0}}
    plain = {0.3: {0: 1.0}, 0.4: {7: 0.1}}
    assert regret(matched, 0.1, [matched, plain]).value == pytest.approx(0.01)


def test_the_interval_is_that_of_all_resamples_of_few_seeds() -> None:
    # Ratios 1.1 and 1.3 for one seed twice, 1.2 for both: each of two resamples in four is mixed.
    matched = {0.1: {0: 1.1, 1: 1.3}}
    plain = {0.2: {0: 1.0, 1: 1.0}}
    found = regret(matched, 0.1, [matched, plain])
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == (pytest.approx(0.115), pytest.approx(0.285))


def test_a_run_that_diverged_is_never_the_lowest_and_an_infinite_regret() -> None:
    matched = {0.1: {0: 1.0, 1: 1.0}, 0.4: {0: 0.1, 1: math.inf}}
    assert regret(matched, 0.1, [matched]).value == 0
    assert regret(matched, 0.4, [matched]).value == math.inf


def test_it_is_unknown_without_a_run_at_the_rate_and_where_losses_may_be_negative() -> None:
    matched = {0.1: {0: 1.0}, 0.2: {0: -0.5}}
    assert math.isnan(regret(matched, 0.3, [matched]).value)
    assert math.isnan(regret(matched, 0.1, [matched]).value)


def test_it_is_unknown_where_nothing_but_the_bases_rate_was_tried() -> None:
    """A single run is as good as the best that was tried, and says nothing."""
    alone = {0.1: {0: 1.0, 1: 1.1}}
    assert math.isnan(regret(alone, 0.1, [alone]).value)
    assert math.isnan(cost(alone, 0.1, alone))
    assert cost(alone, 0.1, {0.1: {0: 1.0, 1: 1.1}}) == 0
    assert regret(alone, 0.1, [alone, {0.1: {0: 2.0}}]).value == 0


def test_losses_of_runs_are_means_of_a_seed_and_only_of_runs_that_count() -> None:
    runs = [
        SweepRun(lr=0.1, seed=0, loss=1.0, status="completed"),
        SweepRun(lr=0.1, seed=0, loss=3.0, status="completed"),
        SweepRun(lr=0.1, seed=1, loss=None, status="diverged"),
        SweepRun(lr=0.2, seed=0, loss=None, status="running"),
    ]
    assert losses_by_rate(runs) == {0.1: {0: 2.0, 1: math.inf}}


def test_a_rate_that_differs_by_rounding_is_the_same_rate() -> None:
    runs = [SweepRun(lr=0.3, seed=0, loss=1.0), SweepRun(lr=0.1 * 3, seed=1, loss=3.0)]
    assert 0.1 * 3 != 0.3
    assert losses_by_rate(runs) == {0.3: {0: 1.0, 1: 3.0}}
    best = losses_by_rate(SweepRun(lr=0.6, seed=seed, loss=1.0) for seed in (0, 1))
    assert regret(losses_by_rate(runs), 0.3, [losses_by_rate(runs), best]).value == 1.0


def test_the_cost_is_against_plain_training_and_may_be_negative() -> None:
    matched = {0.1: {0: 1.0}, 0.2: {0: 0.5}}
    plain = {0.1: {0: 9.0}, 0.05: {0: 1.25}}
    assert cost(matched, 0.1, plain) == pytest.approx(1.0 / 1.25 - 1)
    assert cost(plain, 0.1, plain) == pytest.approx(9.0 / 1.25 - 1)


def test_a_cost_is_over_the_seeds_that_both_have() -> None:
    # Seed 1 has the higher level: over their own seeds, the means are 1.01 and 1.5.
    matched = {0.1: {0: 1.01}}
    plain = {0.3: {0: 1.0, 1: 2.0}, 0.4: {7: 0.1}}
    assert cost(matched, 0.1, plain) == pytest.approx(0.01)


def test_a_cost_is_infinite_where_the_bases_rate_diverged_and_plain_rates_that_did_are_left_out():
    plain = {0.1: {0: 1.0, 1: 1.0}, 0.4: {0: 0.1, 1: math.inf}}
    assert cost(plain, 0.1, plain) == 0
    assert cost(plain, 0.4, plain) == math.inf


@pytest.mark.parametrize(
    "plain", [{}, {0.1: {7: 1.0}}, {0.1: {0: math.inf}}, {0.1: {0: 1.0}, 0.2: {0: -0.5}}]
)
def test_a_cost_is_unknown_without_plain_losses_to_compare_with(plain) -> None:
    assert math.isnan(cost({0.1: {0: 1.0}}, 0.1, plain))
    assert math.isnan(cost({0.1: {0: 1.0}}, 0.3, {0.1: {0: 1.0}}))
