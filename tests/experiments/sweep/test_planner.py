"""What a sweep trains next: the base before what is matched to it, every curve once before any
twice, nothing twice."""

from __future__ import annotations

import math

import pytest

from flerm_core.errors import InvalidInput
from flerm_experiments.sweep.planner import base_best_index, expected_index, plan, seeds_settled_of
from flerm_experiments.sweep.spec import load, parse, presets
from flerm_experiments.sweep.trials import Trial, job_of
from flerm_experiments.workloads import WORKLOADS, Scale

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


def carried_out(optimum: dict, start: dict[Trial, float] | None = None) -> dict[Trial, float]:
    """Everything the plan asks for, in its order, by curves with the given optima."""
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
    assert expected_index(PLAIN, 1) == -1
    assert expected_index(MATCHED, 1) == expected_index(MUP, 1) == 1


def test_every_cell_is_trained_with_the_first_seed_before_any_with_the_second() -> None:
    order = [
        trial
        for trial in carried_out({None: 0, PLAIN: -2, MATCHED: 0, MUP: 0})
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
    done = carried_out({None: 1, PLAIN: -3, MATCHED: 1, MUP: 1})
    assert base_best_index(SWEEP, done) == 1
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


STORED = {
    "decoder-width": {
        "": "68dfc75208017514d7e0022428086d7f",
        "width ×4, plain": "4aec0c03c88a7bf80d943732ce9b5a98",
        "width ×4, matched": "0b212338cc5c21e85f49c5f9ef15d30e",
        "width ×4, mup": "be10254ec0d50fd9483c46cc01425a5c",
    },
    "decoder-init-scale": {"init scale ×4, matched-periodic": "745226d6706d84e045fc1a78811bafe7"},
    "decoder-depth": {"depth ×4, matched-root": "55a77e6f7947144620e7cd97f9f1beeb"},
    "decoder-decay": {"width ×4, matched-independent": "fc36607026b8ac55b27c30d79c4ae22a"},
    "resmlp-ablations": {
        "": "868c3da26fe9a2c90470884ae0fef199",
        "width ×8, plain": "884e9d56b3f3721184e9f9b1ea50eb05",
        "width ×8, matched-periodic": "4588dc92ac7ff8bea14bff23a80d9ace",
        "depth ×4, equal": "047771e5c1041c68b2b0ddd739e59b5a",
    },
    "lora-gpt2": {"rank ×4, matched": "2a10734c20e279c264c5c32c15edbbe1"},
}


@pytest.mark.parametrize("preset", STORED)
def test_the_keys_of_recordings_that_registries_hold_stay_what_they_are(preset: str) -> None:
    sweep = load(preset)
    for cell in (None, *sweep.cells):
        label = "" if cell is None else cell.label
        if label in STORED[preset]:
            tags = {"steps": str(sweep.steps), "schedule": "constant", "job": STORED[preset][label]}
            assert job_of(sweep, Trial(cell, 1, 0), None).tags == tags


def test_a_longer_cell_matches_as_often_in_its_run_and_to_the_bases_recordings() -> None:
    variants = ["plain", "matched", "matched-periodic", "matched-fraction"]
    table = {"width": 4, "variants": variants}
    content = {"workload": "resmlp", "initial_lr": 1.0, "steps": 12, "every": 4}
    sweep = parse(content | {"cell": [{"steps": 3, **table}, table]}, "demo")
    jobs = [job_of(sweep, Trial(cell, 0, 0), None) for cell in sweep.cells]
    assert [(job.steps, job.every, job.clock) for job in jobs[:4]] == [
        (36, 4, "step"),
        (36, None, "step"),
        (36, 12, "step"),
        (36, 12, "fraction"),
    ]
    assert [(job.steps, job.every) for job in jobs[4:]] == [(12, 4), (12, None), (12, 4), (12, 4)]
    assert all(
        job.source_tags == {"steps": "12", "schedule": "constant"}
        for job in jobs
        if job.mode == "match"
    )
    assert [cell.label for cell in sweep.cells[:2]] == [
        "width ×4, steps ×3, plain",
        "width ×4, steps ×3, matched",
    ]
    # As one of another sweep's own length a plain run is the same, a matched one is not: its base
    # is another.
    other = parse(content | {"steps": 36, "cell": [table]}, "other")
    same = [
        job.tags == job_of(other, Trial(cell, 0, 0), None).tags
        for job, cell in zip(jobs, other.cells, strict=False)
    ]
    assert same == [True, False, False, False]


def test_a_cell_is_a_whole_number_of_times_as_long() -> None:
    for steps in (0, 1.5, True, "2"):
        with pytest.raises(
            InvalidInput,
            match=f"cell.steps is {steps!r}, but it must be a whole number of at least 1",
        ):
            parse({"workload": "resmlp", "initial_lr": 1.0, "cell": [{"steps": steps}]}, "demo")
    (longer, _) = parse(
        {"workload": "resmlp", "initial_lr": 1.0, "cell": [{"steps": 2}]}, "demo"
    ).cells
    assert longer.label == "steps ×2, plain"


def test_the_clock_preset_shares_the_base_of_the_width_preset() -> None:
    clock, width = load("decoder-clock"), load("decoder-width")
    assert [cell.label for cell in clock.cells] == [
        f"width ×4, steps ×2, {variant}"
        for variant in ("plain", "matched", "matched-periodic", "matched-fraction")
    ]
    base = Trial(None, 0, 0)
    assert job_of(clock, base, None) == job_of(width, base, None)
    assert [job_of(clock, Trial(cell, 0, 0), None).steps for cell in clock.cells] == [600] * 4


@pytest.mark.parametrize(
    "workload", ["resmlp", "decoder", "decoder-postnorm", "decoder-prenormpostmod"]
)
def test_presets_hold_plain_and_matched_cells_of_every_scale(workload: str) -> None:
    large = [Scale(width=8), Scale(depth=8)]
    usual = [
        Scale(width=4),
        Scale(depth=4),
        Scale(width=4, depth=4),
        Scale(init_scale=0.25),
        Scale(init_scale=4.0),
    ]
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
