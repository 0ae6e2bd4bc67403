"""When not to trust the rate of a family, in exact sentences."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flerm_core.records.queries import BestQuery
from flerm_core.tuning.cautions import UNKNOWN_REGRET, initial_scale_words, is_initial_scale
from flerm_core.tuning.experiment_settings import ExperimentRun
from flerm_core.tuning.family_best import best_of

from .test_transfer_report import runs, transfer_report

ONE_SEED = (
    "The base has one seed: optima of single seeds lie up to 0.4 octaves apart, so record two more."
)


def test_one_seed_an_initialisation_and_the_regret_that_was_measured_are_said():
    """The matched loss is 1 at the base's rate, and 0.8 is the lowest of plain training."""
    base = runs(-5, role="base", seeds=1, config={"init_scale": 1.0})
    matched = runs(-5, seeds=1, variant="matched", config={"init_scale": 4.0})
    plain = runs(-5, least=0.8, config={"init_scale": 4.0}, seeds=1)
    everything = base + matched + plain
    said = (
        ONE_SEED,
        "Some models differ from the base in init_scale: matching makes up for this only where a "
        "norm follows every weight (docs/results.md).",
        "At the base's rate, the loss of 1 matched curve was 25.0 % above the lowest that was "
        "tried with the same model.",
    )
    assert transfer_report("f", everything).cautions == said
    experiments = list(map(ExperimentRun.of, everything))
    assert best_of(experiments, BestQuery(family="f", cautions=True)).cautions == said
    assert best_of(experiments, BestQuery(family="f")).cautions == ()
    asked = BestQuery(family="f", role="scaled", variant="matched", cautions=True)
    assert best_of(experiments, asked).cautions == ()


def test_a_family_without_matches_at_the_bases_rate_has_no_regret_to_tell():
    base = runs(-5, role="base", config={"width": 1})
    elsewhere = runs(-5, places=range(-4, -2), variant="matched", config={"width": 4})
    single = runs(-5, places=range(-5, -4), variant="matched", config={"width": 4})
    others = runs(-5, config={"width": 4}), elsewhere, single
    for everything in (base, *(base + each for each in others)):
        assert transfer_report("f", everything).cautions == (UNKNOWN_REGRET,)
    assert transfer_report("f", elsewhere).cautions == ()  # without a base


def test_a_matched_curve_that_diverged_at_the_bases_rate_is_said():
    base = runs(-5, role="base", config={"width": 1})
    matched = [
        replace(each, status="diverged", final_loss=None) if each.spec.lr == 2.0**-5 else each
        for each in runs(-6, variant="matched", config={"width": 4})
    ]
    assert transfer_report("f", base + matched).cautions == (
        "At the base's rate, 1 matched curve diverged.",
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("init_scale", True),
        ("initializer_range", True),
        ("weight_init_std", True),
        ("width", False),
        ("initial_lr", False),
        ("init_loss_scale", False),
        ("init_seed", False),
    ],
)
def test_which_settings_are_scales_of_initialisation(name, expected):
    assert is_initial_scale(name) == expected


def test_another_scale_of_initialisation_is_said_by_its_name():
    base = {"width": 32, "init_scale": 1, "config": {"initializer_range": 0.02, "n_init": True}}
    own = {"width": 64, "init_scale": 1.0, "config": {"initializer_range": 0.1, "n_init": False}}
    assert initial_scale_words(base, own) == (
        "initializer_range is 0.1 for this model and 0.02 in the base: matching makes up for this "
        "only where a norm follows every weight (docs/results.md).",
    )
    assert initial_scale_words(base, {"width": 64}) == initial_scale_words({}, own) == ()
