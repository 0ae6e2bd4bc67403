"""What a sweep trains next: the base before its matched cells, every curve once before any twice,
nothing twice."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from flerm_core.errors import InvalidInput
from flerm_experiments.sweep.planner import base_best_index, expected_index, plan, seeds_settled_of
from flerm_experiments.sweep.spec import parse
from flerm_experiments.sweep.trials import Trial

SWEEP = parse(
    {
        "workload": "resmlp",
        "initial_lr": 2.0**-8,
        "base_seeds": 2,
        "seeds": 2,
        "cell": [{"width": 4, "variants": ["plain", "matched"]}, {"width": 2, "variants": ["mup"]}],
    },
    "demo",
)


PLAIN, MATCHED, MUP = SWEEP.cells


def losses_after_plan(optimum: dict, start: dict[Trial, float] | None = None) -> dict[Trial, float]:
    """Does all planned trials in order, with curves of the given optima; returns the losses."""
    done = dict(start or {})
    while missing := plan(SWEEP, done):
        ready = next(each for each in missing if not each.waits_for)
        assert ready.trial not in done
        done[ready.trial] = (ready.trial.lr_index - optimum[ready.trial.cell]) ** 2
    return done


def test_the_base_comes_first_with_all_its_seeds() -> None:
    assert {(each.trial.cell, each.trial.lr_index) for each in plan(SWEEP, {})} == {
        (None, -1),
        (None, 0),
        (None, 1),
    }
    done = {Trial(None, lr_index, 0): lr_index**2 for lr_index in (-1, 0, 1)}
    assert {each.trial.seed for each in plan(SWEEP, done)} == {1}


def test_plain_training_is_expected_lower_by_its_width_the_rest_at_the_base() -> None:
    assert expected_index(SWEEP, PLAIN, 1) == -1
    assert expected_index(SWEEP, MATCHED, 1) == expected_index(SWEEP, MUP, 1) == 1
    assert expected_index(replace(SWEEP, rates_per_octave=2), PLAIN, 1) == -3


def test_every_cell_is_trained_with_the_first_seed_before_any_with_the_second() -> None:
    order = [
        trial
        for trial in losses_after_plan({None: 0, PLAIN: -2, MATCHED: 0, MUP: 0})
        if trial.cell is not None
    ]
    seeds = [trial.seed for trial in order]
    assert seeds == sorted(seeds)
    assert {trial.cell for trial in order[: seeds.index(1)]} == set(SWEEP.cells)


def test_a_matched_trial_waits_for_the_base_at_its_rate_with_all_seeds() -> None:
    done = {Trial(None, lr_index, seed): lr_index**2 for lr_index in (-1, 0, 1) for seed in (0, 1)}
    done |= {Trial(MATCHED, lr_index, 0): -lr_index for lr_index in (-1, 0, 1)}
    missing = {each.trial: each for each in plan(SWEEP, done)}
    assert missing[Trial(MATCHED, 2, 0)].waits_for == (Trial(None, 2, 0), Trial(None, 2, 1))
    assert missing[Trial(None, 2, 0)].waits_for == ()


def test_plain_cells_are_trained_at_the_bases_best_rate_too() -> None:
    done = losses_after_plan({None: 1, PLAIN: -3, MATCHED: 1, MUP: 1})
    assert base_best_index(SWEEP, done) == 1
    assert {Trial(PLAIN, 1, 0), Trial(PLAIN, 1, 1)} <= set(done)


def test_a_plan_that_was_stopped_goes_on_with_the_rest_alone() -> None:
    optima = {None: 0, PLAIN: -2, MATCHED: 1, MUP: -1}
    whole = losses_after_plan(optima)
    half = dict(list(whole.items())[: len(whole) // 2])
    assert losses_after_plan(optima, half) == whole
    assert plan(SWEEP, whole) == []


def test_a_diverged_trial_is_done() -> None:
    done = losses_after_plan({None: 0, PLAIN: -2, MATCHED: 0, MUP: 0})
    done[Trial(MUP, 1, 1)] = math.inf
    assert plan(SWEEP, done) == []


def test_a_cell_with_fewer_seeds_is_done_with_those_while_the_others_go_on() -> None:
    cells = [{"width": 8, "seeds": 1, "variants": ["plain"]}, {"width": 4, "variants": ["plain"]}]
    sweep = parse(
        {"workload": "resmlp", "initial_lr": 1.0, "base_seeds": 1, "seeds": 3, "cell": cells},
        "demo",
    )
    done: dict[Trial, float] = {}
    while missing := plan(sweep, done):
        done[missing[0].trial] = missing[0].trial.lr_index ** 2
    wide, narrow = sweep.cells
    assert {trial.seed for trial in done if trial.cell == wide} == {0}
    assert {trial.seed for trial in done if trial.cell == narrow} == {0, 1, 2}
    assert seeds_settled_of(sweep, done, wide) == 1
    with pytest.raises(
        InvalidInput, match="seeds is 0, but it must be a whole number of at least 1"
    ):
        parse({"workload": "resmlp", "initial_lr": 1.0, "cell": [{"seeds": 0}]}, "demo")
