"""Jobs of trials: their keys find stored recordings, and longer cells match as often as their base
was measured."""

from __future__ import annotations

import pytest

from flerm_experiments.sweep.spec import load, parse
from flerm_experiments.sweep.trials import Trial, job_of

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
            octave = Trial(cell, sweep.rates_per_octave, 0)
            assert job_of(sweep, octave, None).tags == tags


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
    # In a sweep whose base has this length, a plain run is the same training. A matched run is not,
    # because its base is another.
    other = parse(content | {"steps": 36, "cell": [table]}, "other")
    same = [
        job.tags == job_of(other, Trial(cell, 0, 0), None).tags
        for job, cell in zip(jobs, other.cells, strict=False)
    ]
    assert same == [True, False, False, False]


def test_the_clock_preset_shares_the_base_of_the_width_preset() -> None:
    clock, width = load("decoder-clock"), load("decoder-width")
    assert [cell.label for cell in clock.cells] == [
        f"width ×4, steps ×2, {variant}"
        for variant in ("plain", "matched", "matched-periodic", "matched-fraction")
    ]
    base = Trial(None, 0, 0)
    assert job_of(clock, base, None) == job_of(width, base, None)
    assert [job_of(clock, Trial(cell, 0, 0), None).steps for cell in clock.cells] == [600] * 4
