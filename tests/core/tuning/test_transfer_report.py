"""Whether a learning rate carried over: scales and experiments are found from the settings."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from flerm_core.errors import NotFound
from flerm_core.records.recording import ParameterList, Recording, RecordingSpec
from flerm_core.tuning.experiment_settings import ExperimentRun
from flerm_core.tuning.transfer_report import Curves, TransferReport
from flerm_core.tuning.transfer_report import transfer_report as report_of
from flerm_core.tuning.transfer_words import base_words, transfer_words


def transfer_report(family: str, recordings: list[Recording], *chosen) -> TransferReport:
    return report_of(family, map(ExperimentRun.of, recordings), *chosen)


NOTHING = ParameterList((), (), ())


def runs(
    optimum: float,
    least: float = 1.0,
    places: range = range(-9, -2),
    seeds: int = 2,
    role: str = "scaled",
    optimizer: str = "Adam",
    **more,
) -> list[Recording]:
    """A sweep whose loss is least at 2**optimum."""
    return [
        Recording(
            spec=RecordingSpec(
                family="f", lr=2.0**place, seed=seed, role=role, optimizer=optimizer,
                parameters=NOTHING, **more,
            ),
            status="completed",
            final_loss=least * (1 + 0.1 * (place - optimum) ** 2) + 1e-3 * seed,
        )
        for seed in range(seeds)
        for place in places
    ]  # fmt: skip


BASE = runs(-5, role="base", config={"width": 1, "parameters": 100}, seeds=4)
WIDE = {"config": {"width": 4, "parameters": 1600}}
PLAIN = runs(-7, 0.8, **WIDE)
MATCHED = runs(-5.25, 0.78, variant="matched", **WIDE)


def test_a_report_with_the_curves_of_the_one_before_is_the_same():
    known, found = Curves(), [*BASE, *PLAIN, *MATCHED]
    report_of("f", map(ExperimentRun.of, found), known=known)
    for changed in (found[:-1], [*found[1:], replace(found[0], final_loss=0.1)], found):
        again = report_of("g", map(ExperimentRun.of, changed), known=known)
        # Not by `==`: a report has NaN where something is not known.
        assert repr(again) == repr(transfer_report("g", changed))


def test_each_scale_and_variant_has_its_shift_and_the_cost_of_the_bases_rate():
    report = transfer_report("f", [*BASE, *PLAIN, *MATCHED])
    base, plain, matched = report.rows
    assert [row.label for row in report.rows] == ["base", "width ×4", "width ×4"]
    assert [row.variant for row in report.rows] == ["plain", "plain", "matched"]
    assert report.best is not None
    assert (report.best.lr, base.seeds, base.runs) == (2.0**-5, 4, 28)
    assert (plain.shift.octaves, matched.shift.octaves) == pytest.approx((-2, -0.25), abs=1e-6)
    assert (matched.shift.low, matched.shift.high) == pytest.approx((-0.25, -0.25), abs=1e-6)
    low = 0.8 + 5e-4
    assert plain.cost == pytest.approx((0.8 * 1.4 + 5e-4) / low - 1)
    assert matched.cost == pytest.approx((0.78 * (1 + 0.1 / 16) + 5e-4) / low - 1)
    assert report.dimensions == ("width",)
    assert list(report.panels()) == ["plain", "matched"]
    assert list(report.panels()["matched"]) == ["base", "×4"]
    said = transfer_words(report)
    assert said.startswith(
        "Carried over to width ×4 by matching, the optimum lies 0.25 octaves below the base's"
    )
    assert "Trained plainly, the optimum lies 2.00 octaves below the base's" in said


def test_the_cost_compares_the_seeds_that_matched_and_plain_runs_share():
    """Here a seed more raises the mean of plain training, and is no gain of matching."""
    lucky = [run for run in MATCHED if run.spec.seed == 0]
    high = [replace(run, final_loss=run.final_loss * 2) for run in PLAIN if run.spec.seed == 1]
    low = [run for run in PLAIN if run.spec.seed == 0]
    matched = transfer_report("f", [*BASE, *low, *high, *lucky]).rows[2]
    assert matched.cost == pytest.approx(0.78 * (1 + 0.1 / 16) / 0.8 - 1)


def test_one_rate_tells_no_optimum():
    """What `flerm tune` leaves behind: a base with a curve, and one run of the big model."""
    one = [run for run in MATCHED if run.spec.lr == 2.0**-5][:1]
    report = transfer_report("f", [*BASE, *one])
    (row,) = (each for each in report.rows if each.scale)
    assert (row.seeds, row.runs, row.loss, row.loss_at_base) == (1, 1, row.loss_at_base, row.loss)
    unknown = (row.optimum, row.shift.octaves, row.cost, row.regret.value)
    assert all(map(math.isnan, unknown))
    assert report.headline is None
    assert transfer_words(report) == ""


def test_a_base_with_one_rate_has_no_optimum_to_lie_away_from():
    one = [run for run in BASE if run.spec.lr == 2.0**-5]
    report = transfer_report("f", [*one, *MATCHED])
    assert report.best is not None
    assert [math.isnan(row.shift.octaves) for row in report.rows] == [True, True]
    assert report.rows[1].optimum == pytest.approx(2.0**-5.25)


def test_the_models_of_the_sentence_are_shown_first_and_matched_stands_beside_plain():
    config = {"depth": 1, "width": 1}
    base = runs(-5, role="base", config=config)
    both = {"config": {"depth": 4, "width": 4}}
    deep = {"config": {"depth": 4, "width": 1}}
    others = [run for name in ("joint", "matched") for run in runs(-5, variant=name, **both)]
    many = [run for name in ("joint", "split") for run in runs(-5, variant=name, **deep)]
    report = transfer_report("f", [*base, *others, *runs(-6, **both), *many, *runs(-6, **deep)])
    assert report.headline is not None
    assert report.headline.label == "width ×4, depth ×4", "in one order, whatever the settings' is"
    assert report.dimensions == ("width, depth", "depth")
    assert list(report.panels()) == ["plain", "matched", "joint"]
    assert list(report.panels("depth")) == ["plain", "joint", "split"]
    with pytest.raises(
        NotFound, match=r"'heads' is no setting .* there is 'width, depth', 'depth'"
    ):
        report.panels("heads")
    with pytest.raises(NotFound, match=r"'depth' is no setting .* no model is scaled"):
        transfer_report("f", base).panels("depth")


def test_experiments_are_told_apart_and_the_largest_is_shown():
    sgd = runs(-3, role="base", optimizer="SGD", config={"width": 1})
    report = transfer_report("f", [*BASE, *PLAIN, *sgd])
    (kind,) = report.kinds
    assert (kind.name, kind.shown, report.left_out) == ("optimizer", "Adam()", 14)
    assert report.experiment.startswith(
        "This is about the runs with optimizer Adam. The family has others, 14 recordings in "
        "all: optimizer=SGD (14 recordings)"
    )
    asked = transfer_report("f", [*BASE, *PLAIN, *sgd], {"optimizer": "SGD()"})
    assert asked.best is not None
    assert (asked.best.lr, [row.label for row in asked.rows]) == (2.0**-3, ["base"])


def test_a_setting_that_no_base_has_is_another_scale_and_not_another_experiment():
    short = [*runs(-5, role="base", tags={"steps": "100"}, places=range(-7, -3))]
    base = runs(-6, role="base", tags={"steps": "300"})
    long = runs(-6, variant="matched", tags={"steps": "600"})
    report = transfer_report("f", [*short, *base, *long])
    assert [(kind.name, kind.shown) for kind in report.kinds] == [("steps", "300")]
    assert [row.label for row in report.rows] == ["base", "steps ×2"]


def test_a_bigger_model_recorded_as_base_is_found_out():
    wide = runs(-7, 0.8, role="base", **WIDE)
    report = transfer_report("f", [*BASE, *wide, *MATCHED])
    assert report.experiment.startswith(f"{len(wide)} recordings with role base are of a bigger")
    assert report.best is not None
    assert report.best.lr == 2.0**-5
    assert [(row.label, row.variant) for row in report.rows][1:] == [
        ("width ×4", "plain"),
        ("width ×4", "matched"),
    ]
    assert 'record such runs with role="scaled"' in report.experiment


def test_at_an_end_the_next_rate_is_said_and_no_spread():
    report = transfer_report("f", runs(0, role="base"))
    assert report.best is not None
    assert math.isnan(report.best.optimum_spread)
    said = base_words(report.best)
    assert said.endswith("try 0.25.")
    assert "±" not in said


def test_seeds_under_way_do_not_hide_the_optimum():
    begun = runs(-5, role="base", seeds=5, places=range(-5, -4))[-1:]
    report = transfer_report("f", [*BASE, *begun])
    assert report.base is not None
    assert (report.base.seeds, report.base.bracketed) == (4, True)


def test_numbers_of_jobs_tell_no_scales_apart():
    base = [
        each
        for seed in range(2)
        for each in runs(-5, role="base", places=range(-6, -3), seeds=1, tags={"job": f"j{seed}"})
    ]
    assert [row.label for row in transfer_report("f", base).rows] == ["base"]


def test_a_row_has_its_regret_over_all_variants_of_its_scale():
    base = runs(-5, role="base", config={"width": 32})
    wide = {"config": {"width": 128}}
    plain = runs(-7, least=0.9, variant="plain", **wide)
    report = transfer_report("f", base + plain + runs(-5, variant="matched", **wide))
    rows = {row.variant: row for row in report.rows if row.scale}
    lowest = rows["plain"].loss
    assert rows["matched"].regret.value == pytest.approx(rows["matched"].loss_at_base / lowest - 1)
    assert rows["plain"].regret.value == pytest.approx(rows["plain"].loss_at_base / lowest - 1)
    assert rows["matched"].regret.low <= rows["matched"].regret.value <= rows["matched"].regret.high
