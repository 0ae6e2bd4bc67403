"""Another batch, or another length: what a matched run changes, in exact figures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from flerm_core.errors import InvalidInput
from flerm_core.matching.batch_change import BatchChange, unfollowed
from flerm_core.matching.match import multipliers
from flerm_core.matching.targets import Targets, build_targets, choose_sources
from flerm_core.records.queries import TargetQuery
from flerm_core.records.recording import ParameterList, Recording, RecordingSpec
from flerm_core.trajectory import Trajectory

LIST = ParameterList(("w",), ((2, 2),), ("other",))


def recording(seed: int, **said: object) -> Recording:
    spec = RecordingSpec(
        family="f", lr=0.5, seed=seed, parameters=LIST, optimizer="Adam",
        optimizer_config={"betas": [0.9, 0.99], "eps": 1e-8}, **said,  # type: ignore[arg-type]
    )  # fmt: skip
    return Recording(spec=spec, status="completed", rows=1, final_step=300)


def targets(*recordings: Recording) -> Targets:
    query = TargetQuery(family="f", lr=0.5, names=("w",))
    run = Trajectory(LIST.names, LIST.shapes, [1], np.ones((1, 1)))
    return build_targets(query, choose_sources(recordings, query), lambda each: run)


BASE = targets(recording(0, config={"batch_size": 64}))


@pytest.mark.parametrize(
    ("batch", "steps", "betas", "rate"),
    [
        (256, None, (0.9**2, 0.99**2), 4**0.25),  # as many steps: four times the examples
        (256, 75, (0.9**2, 0.99**2), 2.0),  # as many examples: the square root of the batch
        (128, 300, (0.9**2**0.5, 0.99**2**0.5), 2**0.25),
        (1024, 300, (0.9**2, 0.99**2), 2.0),  # momentum below 0.65 helps no batch
        (64, 4800, (0.9, 0.99), 0.5),  # longer and nothing else
        (16, None, (0.9, 0.99), 0.25**0.25),  # fewer examples: the moments stay
        (64, None, (0.9, 0.99), 1.0),
    ],
)
def test_betas_follow_the_examples_and_rates_batch_and_length(
    batch: int, steps: int | None, betas: tuple[float, float], rate: float
) -> None:
    change = BatchChange.of(BASE, batch, steps)
    assert change.settings(BASE.optimizer_config) == {
        "betas": pytest.approx(list(betas), rel=1e-15),
        "eps": 1e-8,
    }
    assert change.rate == pytest.approx(rate, rel=1e-15)


def test_the_change_is_said_in_one_sentence() -> None:
    assert BatchChange.of(BASE, 256).sentence == (
        "batch size 256 in 300 steps, where the base has 64 in 300: learning rates are multiplied "
        "by 1.414, and the betas (0.9, 0.99) become (0.81, 0.9801) (docs/choices.md)"
    )
    assert BatchChange.of(BASE, 16).sentence.endswith(
        ": learning rates are multiplied by 0.7071, and the betas stay (docs/choices.md)"
    )
    assert BatchChange.of(BASE, 64).sentence.endswith("has 64 in 300: nothing is changed")


def test_a_run_that_does_not_follow_its_batch_is_told_what_would() -> None:
    assert unfollowed(BASE, 256) == (
        "a step of this run has 256 examples and a step of the base 64: betas and rates do not "
        "follow; with batch_size=256 learning rates are multiplied by 1.414, and the betas (0.9, "
        "0.99) become (0.81, 0.9801) (docs/choices.md); give total_steps= too where the run is "
        "longer or shorter than the base"
    )
    by_sgd = replace(BASE, optimizer="SGD", optimizer_config={"momentum": 0.9})
    assert unfollowed(by_sgd, 256) == (
        "a step of this run has 256 examples and a step of the base 64: rates stay as matched, for "
        "no rule for another batch was measured with SGD"
    )
    for found, own in ((BASE, 64), (BASE, None), (replace(BASE, batch_size=None), 256)):
        assert unfollowed(found, own) == ""


def test_groups_of_parameters_with_betas_of_their_own_keep_them_apart() -> None:
    config = {"betas": [[0.9, 0.5], [0.8, 0.5]]}
    change = BatchChange.of(replace(BASE, optimizer_config=config), 256)
    assert change.settings(config) == {
        "betas": [[pytest.approx(0.81), 0.25], [pytest.approx(0.64), 0.25]]
    }
    assert "(0.9, 0.5) become (0.81, 0.25) and (0.8, 0.5) become (0.64, 0.25)" in change.sentence


def test_every_multiplier_takes_part_also_of_a_tensor_that_is_not_matched() -> None:
    found = multipliers({"a": 2.0, "b": 1.0}, {"a": 1.0, "b": float("nan")}, times=1.5)
    assert found.values == {"a": 3.0, "b": 1.5}
    later = multipliers(
        {"a": 2.0, "b": 1.0}, {"a": 1.0, "b": 1.0}, previous=found.values, only=["b"], times=1.5
    )
    assert later.values == {"a": 3.0, "b": 1.5}


@pytest.mark.parametrize(
    ("recordings", "size"),
    [
        ([{"config": {"batch_size": 64}}, {"config": {"batch_size": 64.0}}], 64),
        ([{"tags": {"batch_size": "64"}}, {"config": {"batch_size": 64}}], 64),
        ([{"config": {"batch_size": 64}}, {"config": {"batch_size": 32}}], None),
        ([{"config": {"batch_size": 64}}, {}], None),
        ([{"config": {"batch_size": "many"}}], None),
        ([{"config": {"batch_size": True}}], None),
        ([{"config": {"batch_size": 0}}], None),
    ],
)
def test_targets_say_the_batch_size_that_all_their_recordings_say(
    recordings: list[dict[str, object]], size: int | None
) -> None:
    found = targets(*(recording(seed, **said) for seed, said in enumerate(recordings)))
    assert found.batch_size == size


@pytest.mark.parametrize(
    ("changed", "asked", "sentence"),
    [
        ({}, (0, None), r"batch_size: 0 is not allowed; it must be an integer from 1 to"),
        ({}, (64, 0), r"total_steps: 0 is not allowed; it must be an integer from 1 to"),
        ({}, (None, 9), r"total_steps: 9 goes with a batch size; give both, or leave it out"),
        (
            {"batch_size": None},
            (64, None),
            r"batch_size=64: the base recordings of 'f' do not all say one batch size; record the "
            r"base with batch_size=, set the tag batch_size of these recordings \(flerm tag\), or "
            r"leave batch_size out",
        ),
        (
            {"optimizer": "SGD", "optimizer_config": {"momentum": 0.9}},
            (64, None),
            r"batch_size=64: the rule for another batch was measured with Adam and AdamW, but the "
            r"optimizer of 'f' is SGD; leave batch_size out",
        ),
    ],
)
def test_what_cannot_be_changed_is_said(
    changed: dict[str, object], asked: tuple[int | None, int | None], sentence: str
) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        BatchChange.asked(replace(BASE, **changed), *asked)  # type: ignore[arg-type]
