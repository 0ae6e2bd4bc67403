"""Which base recordings answer for a learning rate."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flerm_core.errors import Ambiguous, InvalidInput, NotFound
from flerm_core.matching.targets import choose_sources
from flerm_core.records.queries import TargetQuery
from flerm_core.records.recording import EstimatorSettings
from tests.core.matching.sources import answer, grid, recording


def test_only_completed_plain_base_recordings_count() -> None:
    good = recording(1e-3)
    others = [
        recording(1e-3, 1, role="scaled"),
        recording(1e-3, 2, variant="matched"),
        recording(1e-3, 3, status="running"),
        recording(1e-3, 4, status="diverged"),
    ]
    assert choose_sources([*others, good], TargetQuery(family="demo", lr=1e-3)) == {1e-3: (good,)}
    with pytest.raises(
        NotFound, match="'demo' has no completed base recording; there are 1 diverged, 1 running"
    ):
        choose_sources(others, TargetQuery(family="demo", lr=1e-3))
    with pytest.raises(
        NotFound, match=r"'demo' has no base recording \(role base, variant plain\)"
    ):
        choose_sources(others[:2], TargetQuery(family="demo", lr=1e-3))


def test_the_newest_recording_of_a_seed_counts() -> None:
    old, new = recording(1e-3, minute=1), recording(1e-3, minute=2)
    assert choose_sources([new, old], TargetQuery(family="demo", lr=1e-3)) == {1e-3: (new,)}


def test_rates_outside_the_range_or_unrecorded_are_errors_that_name_what_there_is() -> None:
    there = [recording(1e-3), recording(4e-3), recording(1e-2, status="running")]
    with pytest.raises(
        NotFound,
        match=r"lr: 0\.01 lies outside the recorded range 0\.001 to 0\.004 of 'demo' "
        ".*there are 1 running",
    ):
        choose_sources(there, TargetQuery(family="demo", lr=1e-2))
    with pytest.raises(
        NotFound,
        match=r"no completed base recording of 'demo' has 0\.002; recorded are 0\.001, 0\.004",
    ):
        choose_sources(there, TargetQuery(family="demo", lr=2e-3, policy="exact"))
    with pytest.raises(
        InvalidInput, match="policy: 'best' is not one; allowed are exact, nearest, interpolate"
    ):
        choose_sources(there, TargetQuery(family="demo", lr=2e-3, policy="best"))
    with pytest.raises(InvalidInput, match=r"lr: 0\.0 is not a learning rate"):
        choose_sources(there, TargetQuery(family="demo", lr=0.0))


def test_a_mixture_of_optimisers_is_refused_until_one_is_named() -> None:
    adam, sgd = (
        recording(1e-3),
        recording(1e-3, 1, optimizer="SGD", optimizer_config={"momentum": 0.9}),
    )
    with pytest.raises(
        Ambiguous,
        match=r"base recordings of 2 optimisers: Adam\(betas=\[.*SGD\(momentum=0\.9\)"
        ".*name one by optimizer",
    ):
        choose_sources([adam, sgd], TargetQuery(family="demo", lr=1e-3))
    query = TargetQuery(family="demo", lr=1e-3, optimizer="SGD")
    assert choose_sources([adam, sgd], query) == {1e-3: (sgd,)}
    assert choose_sources(
        [adam, sgd], TargetQuery(family="demo", lr=1e-3, optimizer_config={"betas": (0.9, 0.999)})
    ) == {1e-3: (adam,)}
    with pytest.raises(
        NotFound,
        match="optimizer: 'Muon' fits no completed base recording of 'demo'; there is Adam, SGD",
    ):
        choose_sources([adam, sgd], replace(query, optimizer="Muon"))


def test_numbers_of_a_configuration_compare_by_value() -> None:
    whole, broken = (
        recording(1e-3, optimizer_config={"decay": 0}),
        recording(1e-3, 1, optimizer_config={"decay": 0.0}),
    )
    found = choose_sources(
        [whole, broken], TargetQuery(family="demo", lr=1e-3, optimizer_config={"decay": 0.0})
    )
    assert found == {1e-3: (whole, broken)}


def test_a_mixture_of_estimators_is_refused_until_one_is_named() -> None:
    paper = EstimatorSettings(name="kronecker", output_weight="head.weight")
    ours, theirs = recording(1e-3), recording(1e-3, 1, estimator=paper)
    with pytest.raises(
        Ambiguous,
        match=r"2 estimators: example \(1 recordings\), kronecker\(head\.weight\) \(1 recordings\)",
    ):
        choose_sources([ours, theirs], TargetQuery(family="demo", lr=1e-3))
    query = TargetQuery(family="demo", lr=1e-3, estimator=replace(paper, samples=9))
    assert choose_sources([ours, theirs], query) == {1e-3: (theirs,)}


def test_tags_choose_the_source_recordings() -> None:
    small, large = (
        recording(1e-3, tags={"width": "32"}),
        recording(1e-3, tags={"width": "64"}, minute=1),
    )
    assert choose_sources(
        [small, large], TargetQuery(family="demo", lr=1e-3, tags={"width": "32"})
    ) == {1e-3: (small,)}
    with pytest.raises(
        NotFound,
        match="tags: width='16' fits no completed base recording of 'demo'; there is 32, 64",
    ):
        choose_sources([small, large], TargetQuery(family="demo", lr=1e-3, tags={"width": "16"}))


def test_a_setting_that_is_off_is_as_good_as_one_that_is_not_known() -> None:
    older = {"betas": [0.9, 0.999], "weight_decay": 0.1}
    newer = older | {"amsgrad": False, "adjust": None, "nesterov": 0}
    recordings = [
        recording(1e-3, optimizer_config=older),
        recording(1e-3, 1, optimizer_config=newer),
    ]
    for config in (older, newer):
        assert choose_sources(
            recordings, TargetQuery(family="demo", lr=1e-3, optimizer_config=config)
        ) == {1e-3: tuple(recordings)}
    with pytest.raises(NotFound, match="amsgrad=true"):
        choose_sources(
            recordings,
            TargetQuery(family="demo", lr=1e-3, optimizer_config=older | {"amsgrad": True}),
        )


def test_a_rate_printed_and_read_back_is_itself() -> None:
    targets = answer(
        TargetQuery(family="demo", lr=3e-4 * (1 + 1e-12), policy="exact"), *grid({(3e-4, 0): 1.0})
    )
    assert targets.source_learning_rates == (3e-4,)


def test_nearest_takes_one_rate_whole() -> None:
    parts = grid({(1e-3, 0): 1.0, (4e-3, 0): 4.0})
    assert (
        answer(TargetQuery(family="demo", lr=2.1e-3, policy="nearest"), *parts)["embed.weight"]
        == 4.0
    )
    assert (
        answer(TargetQuery(family="demo", lr=1.0, policy="nearest"), *parts)["embed.weight"] == 4.0
    )
    far = TargetQuery(family="demo", lr=1e300, policy="nearest")
    assert answer(far, *grid({(1e-300, 0): 1.0}))["embed.weight"] == 1.0
