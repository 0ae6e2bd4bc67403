"""Sweep files: fields out of their range are refused, and presets compare what the results page
shows."""

from __future__ import annotations

import pytest

from flerm_core.errors import InvalidInput
from flerm_experiments.sweep.spec import load, parse, presets
from flerm_experiments.workloads import WORKLOADS, Scale


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


def test_presets_name_workloads_and_scales_that_exist() -> None:
    for sweep in map(load, presets()):
        for cell in sweep.cells:
            WORKLOADS[sweep.workload].check(cell.scale)
    ranks = {cell.scale.rank for name in ("lora-gpt2", "lora-llama") for cell in load(name).cells}
    assert ranks == {4, 16}, "rank 2 to 8 and 32"


def test_two_rates_in_an_octave_lie_half_an_octave_apart() -> None:
    sweep = parse(
        {
            "workload": "resmlp",
            "initial_lr": 0.25,
            "lr_max": 0.5,
            "rates_per_octave": 2,
            "cell": [{"width": 4}],
        },
        "demo",
    )
    assert [sweep.lr_at(each) for each in (-2, 0, 2)] == [0.125, 0.25, 0.5]
    assert sweep.lr_at(1) == pytest.approx(0.25 * 2**0.5)
    assert [sweep.index_of(sweep.lr_at(each)) for each in range(-5, 3)] == [*range(-5, 3)]
    assert sweep.index_of(0.3) is None
    assert max(sweep.allowed_indices) == 2
    with pytest.raises(InvalidInput, match="rates_per_octave is 0"):
        parse(
            {"workload": "resmlp", "initial_lr": 1.0, "rates_per_octave": 0, "cell": [{}]}, "demo"
        )


def test_a_base_with_held_norms_gives_no_targets_to_other_sweeps() -> None:
    content = {"workload": "resmlp", "initial_lr": 1.0, "cell": [{"width": 4}]}
    assert parse(content, "demo").family_name == "resmlp"
    assert parse(content | {"hold_norms": True}, "demo").family_name == "resmlp-held"
