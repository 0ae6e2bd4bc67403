"""Which recordings compare, and which specification means a recording that exists."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from flerm_core.errors import AlreadyExists
from flerm_core.records.comparability import (
    comparability_of,
    refuse_other_recording,
    settings_in_force,
    settings_line,
)
from flerm_core.records.recording import EstimatorSettings, ParameterList, RecordingSpec

SPEC = RecordingSpec(
    family="demo",
    lr=1e-3,
    parameters=ParameterList(("w",), ((2, 2),), ("other",)),
    optimizer="AdamW",
    optimizer_config={"betas": (0.9, 0.999), "weight_decay": 0.1},
)
OFF = [{"amsgrad": False}, {"foreach": None}, {"momentum": 0}, {"momentum": 0.0}, {"groups": []}]


def with_settings(**settings: Any) -> RecordingSpec:
    return replace(SPEC, optimizer_config={**SPEC.optimizer_config, **settings})


@pytest.mark.parametrize("off", OFF)
def test_a_setting_that_is_off_equals_a_setting_that_is_unknown(off: dict[str, Any]) -> None:
    assert comparability_of(with_settings(**off)) == comparability_of(SPEC)


@pytest.mark.parametrize(
    "other",
    [
        with_settings(amsgrad=True),
        with_settings(betas=(0.9, 0.99)),
        replace(SPEC, optimizer="Adam"),
        replace(SPEC, estimator=EstimatorSettings(name="exact")),
    ],
)
def test_another_optimizer_setting_or_estimator_does_not_compare(other: RecordingSpec) -> None:
    assert comparability_of(other) != comparability_of(SPEC)


def test_the_key_of_an_optimizer_is_one_readable_line() -> None:
    assert comparability_of(SPEC).optimizer_key == "AdamW(betas=[0.9, 0.999], weight_decay=0.1)"


def test_settings_compare_by_value_and_content() -> None:
    assert settings_line({"b": 2.0, "a": (1, 2)}) == settings_line({"a": [1, 2], "b": 2})
    assert settings_in_force({"b": 0, "a": {"c": 1.0}}) == {"a": {"c": 1}}


@pytest.mark.parametrize("off", OFF)
def test_a_resume_that_adds_or_drops_a_setting_that_is_off_is_the_same_recording(
    off: dict[str, Any],
) -> None:
    refuse_other_recording(SPEC, with_settings(**off))
    refuse_other_recording(with_settings(**off), SPEC)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"family": "other"}, "family 'demo', not 'other'"),
        ({"lr": 2e-3}, "lr 0.001, not 0.002"),
        ({"seed": 1}, "seed 0, not 1"),
        ({"role": "scaled"}, "role 'base', not 'scaled'"),
        ({"variant": "mup"}, "variant 'plain', not 'mup'"),
        ({"optimizer": "Adam"}, r"optimizer 'AdamW\(.*\)', not 'Adam\("),
        (
            {"optimizer_config": {"weight_decay": 0.2}},
            r"optimizer .*weight_decay=0\.1.*weight_decay=0\.2",
        ),
        ({"estimator": EstimatorSettings(name="exact")}, "estimator 'example', not 'exact'"),
        ({"targets_digest": "ab"}, "targets_digest '', not 'ab'"),
        ({"parameters": ParameterList(("v",), ((2, 2),), ("other",))}, "parameters 'digest "),
    ],
)
def test_the_fields_that_differ_from_the_stored_recording_are_named(
    changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(AlreadyExists, match=f"recording {SPEC.id} exists with {sentence}"):
        refuse_other_recording(SPEC, replace(SPEC, **changes))


def test_fields_that_belong_to_one_attempt_may_differ() -> None:
    refuse_other_recording(SPEC, replace(SPEC, world_size=8, versions={"torch": "3"}, tags={}))
    refuse_other_recording(SPEC, replace(SPEC, lr=SPEC.lr * (1 + 1e-12)))
