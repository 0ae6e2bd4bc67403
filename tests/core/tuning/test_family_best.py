"""The best rate of a family: which of its recordings count, and what is said of the others."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from flerm_core.errors import NotFound
from flerm_core.records.queries import BestQuery
from flerm_core.records.recording import ParameterList, Recording, RecordingSpec
from flerm_core.tuning.best_lr import Best
from flerm_core.tuning.experiment_settings import ExperimentRun
from flerm_core.tuning.family_best import best_of as best_of_experiments
from flerm_core.tuning.transfer_report import transfer_report


def best_of(recordings: list[Recording], **asked: object) -> Best:
    query = BestQuery(family="demo", **asked)  # type: ignore[arg-type]
    return best_of_experiments(map(ExperimentRun.of, recordings), query)


def recording(exponent: float, loss: float, **spec: object) -> Recording:
    fields = {"optimizer": "Adam"} | spec
    return Recording(
        spec=RecordingSpec(
            family="demo", lr=2.0**exponent, parameters=ParameterList((), (), ()), **fields
        ),  # type: ignore[arg-type]
        status="completed",
        final_loss=loss,
        created_at=datetime(2025, 1, 1, tzinfo=UTC),
    )


def test_recordings_are_chosen_by_role_variant_optimiser_and_tags() -> None:
    base = [recording(-9, 3.0), recording(-8, 2.0, tags={"width": "32"}), recording(-7, 3.0)]
    others = [recording(-6, 0.1, role="scaled"), recording(-5, 0.1, variant="matched")]
    assert best_of([*base, *others]).lr == 2.0**-8
    assert best_of([*base, *others], variant="").lr == 2.0**-8
    assert best_of([*base, *others], variant="matched").lr == 2.0**-5
    assert len(best_of(base, tags={"width": "32"}).points) == 1
    assert best_of([*base, recording(-8, 2.5, optimizer="SGD")], optimizer="SGD").loss == 2.5


ADAM = [recording(at, 2 + (at + 8) ** 2) for at in (-9, -8, -7)]
SGD = [
    recording(at, 10.0 + at, optimizer="SGD", optimizer_config={"momentum": momentum})
    for momentum in (0.9, 0.5)
    for at in ((-3, -2) if momentum == 0.9 else (-1,))
]


def test_of_several_optimisers_the_one_with_most_recordings_counts_and_the_rest_is_named() -> None:
    found = best_of([*ADAM, *SGD])
    assert found.lr == 2.0**-8
    assert found.experiment == (
        "This is about the runs with optimizer Adam. The family has others, 3 recordings in "
        "all: optimizer=SGD(momentum=0.9) (2 recordings), optimizer=SGD(momentum=0.5) "
        "(1 recording); to ask about one of them, pick its setting, such as "
        "optimizer=SGD(momentum=0.9)."
    )
    picked = best_of([*ADAM, *SGD], pick={"optimizer": "SGD(momentum=0.9)"})
    assert (picked.lr, len(picked.points)) == (2.0**-3, 2)
    assert best_of(ADAM).experiment == ""
    assert best_of(ADAM, pick={"optimizer": "Adam()"}).experiment == ""


@pytest.mark.parametrize(
    ("pick", "sentence"),
    [
        ({"optimizer": "Lion"}, r"optimizer='Lion' fits no base recording .* there is Adam, SGD"),
        ({"steps": "300"}, "'steps' is no setting of these recordings; there is optimizer"),
    ],
)
def test_a_pick_that_nothing_fits_is_refused(pick: dict[str, str], sentence: str) -> None:
    with pytest.raises(NotFound, match=sentence):
        best_of([*ADAM, *SGD], pick=pick)


def test_scaled_runs_of_several_widths_do_not_mix() -> None:
    wide = [
        recording(at, loss, role="scaled", variant="matched", config={"width": width})
        for width, losses in ((64, (3.0, 2.0, 3.0)), (128, (1.0, 2.0)))
        for at, loss in zip((-9, -8, -7), losses, strict=False)
    ]
    found = best_of([*ADAM, *wide], role="scaled", variant="matched")
    assert (found.lr, found.loss, len(found.points)) == (2.0**-8, 2.0, 3)
    assert "width=128 (2 recordings)" in found.experiment
    other = best_of(wide, role="scaled", variant="matched", pick={"width": "128"})
    assert (other.lr, len(other.points)) == (2.0**-9, 2)


def test_a_scaled_run_without_a_configuration_is_not_taken_for_the_bases() -> None:
    unlabelled = [recording(at, 0.1, role="scaled") for at in (-9, -8, -7, -6)]
    report = transfer_report("demo", map(ExperimentRun.of, [*ADAM, *unlabelled]))
    assert repr(report.best) == repr(best_of([*ADAM, *unlabelled])) == repr(best_of(ADAM))
    assert [(row.label, row.runs) for row in report.rows] == [("base", 3), ("role scaled", 4)]


def test_models_bigger_than_the_base_do_not_count_and_are_named() -> None:
    base = [recording(at, loss, config={"parameters": 640}) for at, loss in ((-9, 3), (-8, 2))]
    unknown = recording(-7, 3.0)
    bigger = [
        recording(-8, 0.1, config={"parameters": 5_000}),
        recording(-7, 0.1, config={"parameters": 5_000.0}),
    ]
    expected, found = best_of([*base, unknown]), best_of([*base, unknown, *bigger])
    # By their texts: of one seed a spread is NaN, which is not equal to itself.
    assert repr(found.points) == repr(expected.points)
    assert found.optimum == expected.optimum
    assert found.advice == expected.advice
    assert found.experiment == (
        "2 recordings with role base are of a bigger model than the smallest base and count as "
        'scaled: record such runs with role="scaled".'
    )
