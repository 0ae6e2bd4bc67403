"""What a sweep trains next: the base before what is matched to it, every curve once before any twice, nothing twice."""

from __future__ import annotations

import math

import pytest

from flerm_client.sweep.definition import load, parse, presets
from flerm_client.sweep.jobs import Trial
from flerm_client.sweep.plan import base_place, expected, plan, settled_seeds
from flerm_client.workloads import WORKLOADS, Scale
from flerm_core.errors import InvalidInput

SWEEP = parse(
    {
        "workload": "resmlp",
        "centre": 2.0**-8,
        "base_seeds": 2,
        "seeds": 2,
        "cell": [{"width": 4, "variants": ["plain", "matched"]}, {"width": 2, "variants": ["mup"]}],
    },
    "demo",
)
PLAIN, MATCHED, MUP = SWEEP.cells


def carried_out(optimum: dict, start: dict[Trial, float] | None = None) -> dict[Trial, float]:
    """Everything the plan asks for, in its order, by curves with the given optima."""
    done = dict(start or {})
    while missing := plan(SWEEP, done):
        ready = next(each for each in missing if not each.after)
        assert ready.trial not in done
        done[ready.trial] = (ready.trial.place - optimum[ready.trial.cell]) ** 2
    return done


def test_the_base_comes_first_with_all_its_seeds() -> None:
    assert {(each.trial.cell, each.trial.place) for each in plan(SWEEP, {})} == {(None, -1), (None, 0), (None, 1)}
    done = {Trial(None, place, 0): place**2 for place in (-1, 0, 1)}
    assert {each.trial.seed for each in plan(SWEEP, done)} == {1}


def test_plain_training_is_expected_lower_by_its_width_the_rest_at_the_base() -> None:
    assert expected(PLAIN, 1) == -1
    assert expected(MATCHED, 1) == expected(MUP, 1) == 1


def test_every_cell_is_trained_with_the_first_seed_before_any_with_the_second() -> None:
    order = [trial for trial in carried_out({None: 0, PLAIN: -2, MATCHED: 0, MUP: 0}) if trial.cell is not None]
    seeds = [trial.seed for trial in order]
    assert seeds == sorted(seeds)
    assert {trial.cell for trial in order[: seeds.index(1)]} == set(SWEEP.cells)


def test_a_matched_trial_waits_for_the_base_at_its_rate_with_all_seeds() -> None:
    done = {Trial(None, place, seed): place**2 for place in (-1, 0, 1) for seed in (0, 1)}
    done |= {Trial(MATCHED, place, 0): -place for place in (-1, 0, 1)}
    missing = {each.trial: each for each in plan(SWEEP, done)}
    assert missing[Trial(MATCHED, 2, 0)].after == (Trial(None, 2, 0), Trial(None, 2, 1))
    assert missing[Trial(None, 2, 0)].after == ()


def test_plain_cells_are_trained_at_the_bases_best_rate_too() -> None:
    done = carried_out({None: 1, PLAIN: -3, MATCHED: 1, MUP: 1})
    assert base_place(SWEEP, done) == 1
    assert {Trial(PLAIN, 1, 0), Trial(PLAIN, 1, 1)} <= set(done)


def test_a_plan_carried_on_after_a_stop_asks_for_the_rest_alone() -> None:
    optima = {None: 0, PLAIN: -2, MATCHED: 1, MUP: -1}
    whole = carried_out(optima)
    half = dict(list(whole.items())[: len(whole) // 2])
    assert carried_out(optima, half) == whole
    assert plan(SWEEP, whole) == []


def test_a_diverged_trial_is_done() -> None:
    done = carried_out({None: 0, PLAIN: -2, MATCHED: 0, MUP: 0})
    done[Trial(MUP, 1, 1)] = math.inf
    assert plan(SWEEP, done) == []


def test_a_cell_with_fewer_seeds_is_done_with_those_while_the_others_go_on() -> None:
    cells = [{"width": 8, "seeds": 1, "variants": ["plain"]}, {"width": 4, "variants": ["plain"]}]
    sweep = parse({"workload": "resmlp", "centre": 1.0, "base_seeds": 1, "seeds": 3, "cell": cells}, "demo")
    done: dict[Trial, float] = {}
    while missing := plan(sweep, done):
        done[missing[0].trial] = missing[0].trial.place ** 2
    wide, narrow = sweep.cells
    assert {trial.seed for trial in done if trial.cell == wide} == {0}
    assert {trial.seed for trial in done if trial.cell == narrow} == {0, 1, 2}
    assert settled_seeds(sweep, done, wide) == 1
    with pytest.raises(InvalidInput, match="seeds is 0, but it must be a whole number of at least 1"):
        parse({"workload": "resmlp", "centre": 1.0, "cell": [{"seeds": 0}]}, "demo")


@pytest.mark.parametrize("workload", ["resmlp", "decoder", "decoder-postnorm", "decoder-prenormpostmod"])
def test_presets_hold_plain_and_matched_cells_of_every_scale(workload: str) -> None:
    large = [Scale(width=8), Scale(depth=8)]
    usual = [Scale(width=4), Scale(depth=4), Scale(width=4, depth=4), Scale(init_scale=0.25), Scale(init_scale=4.0)]
    found: dict[Scale, set[str]] = {}
    for sweep in map(load, presets()):
        if sweep.workload == workload and (sweep.optimizer, sweep.schedule) == ("adam", "constant"):
            for cell in sweep.cells:
                if sweep.seeds_of(cell) >= (1 if cell.scale in large else 3):
                    found.setdefault(cell.scale, set()).add(cell.variant.partition("-")[0])
    assert all(found.get(scale, set()) >= {"plain", "matched"} for scale in (*large, *usual))


def test_presets_are_of_workloads_that_there_are() -> None:
    for sweep in map(load, presets()):
        for cell in sweep.cells:
            WORKLOADS[sweep.workload].check(cell.scale)
    ranks = {cell.scale.rank for name in ("lora-gpt2", "lora-llama") for cell in load(name).cells}
    assert ranks == {4, 16}, "rank 2 to 8 and 32"
