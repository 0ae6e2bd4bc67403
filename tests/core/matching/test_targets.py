"""What targets base recordings give, and how targets are read."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flerm_core import Trajectory
from flerm_core.errors import Ambiguous, InvalidInput, NotFound
from flerm_core.matching.targets import Targets, targets_digest
from flerm_core.records.queries import TargetQuery
from tests.core.matching.sources import answer, grid, recording, trajectory


def test_at_a_recorded_rate_the_seeds_are_averaged() -> None:
    targets = answer(
        TargetQuery(family="demo", lr=1e-3), *grid({(1e-3, 0): 1.0, (1e-3, 1): 4.0, (4e-3, 0): 9.0})
    )
    assert dict(targets) == {
        "embed.weight": 2.0,
        "layers.0.q.weight": 4.0,
        "layers.1.q.weight": 8.0,
    }
    assert (targets.seeds, targets.source_learning_rates, len(targets.sources)) == (2, (1e-3,), 2)
    np.testing.assert_allclose(targets.spread, np.full((2, 3), np.log(4) / np.sqrt(2)), rtol=1e-6)
    assert (targets.optimizer, targets.estimator.name, targets.depth) == (
        "Adam",
        "example",
        "coherent",
    )


def test_between_two_rates_targets_are_blended_by_logarithms() -> None:
    targets = answer(
        TargetQuery(family="demo", lr=2e-3),
        *grid({(1e-3, 0): 1.0, (4e-3, 0): 4.0, (1e-2, 0): 100.0}),
    )
    np.testing.assert_allclose(targets.table, [[2, 4, 8], [1, 2, 4]], rtol=1e-6)
    assert targets.source_learning_rates == (1e-3, 4e-3)
    assert np.isnan(targets.spread).all()


def test_the_depth_rule_is_applied_to_every_row() -> None:
    names = ("embed.weight", *(f"layers.{at}.q.weight" for at in range(4)))
    targets = answer(
        TargetQuery(family="demo", lr=1e-3, names=names, depth="split"), *grid({(1e-3, 0): 1.0})
    )
    assert targets.names == names
    np.testing.assert_array_equal(targets.table, [[1, 1, 1, 2, 2], [0.5, 0.5, 0.5, 1, 1]])


def test_the_spread_of_a_split_target_is_that_of_the_seeds() -> None:
    names = ("layers.0.q.weight",)
    targets = answer(
        TargetQuery(family="demo", lr=1e-3, names=names), *grid({(1e-3, 0): 1.0, (1e-3, 1): np.e})
    )
    np.testing.assert_allclose(targets.spread, [[1 / np.sqrt(2)]] * 2, rtol=1e-6)


def test_targets_are_a_mapping_of_the_first_row() -> None:
    targets = answer(TargetQuery(family="demo", lr=1e-3), *grid({(1e-3, 0): 1.0}))
    assert list(targets.values()) == [1.0, 2.0, 4.0]
    assert len(targets) == 3
    assert "layers.*.q.weight" not in targets
    with pytest.raises(KeyError, match="nothing"):
        targets["nothing"]
    assert repr(targets).startswith(
        "Targets('demo', lr=0.001, 3 tensors, 2 rows, from lr 0.001, 1 seeds, "
    )


def test_targets_are_read_by_step_tokens_or_fraction() -> None:
    targets = answer(TargetQuery(family="demo", lr=1e-3), *grid({(1e-3, 0): 1.0}))
    half = np.sqrt(0.5)
    assert targets.at() == dict(targets)
    assert targets.at(step=51)["embed.weight"] == pytest.approx(half)
    assert targets.at(tokens=510)["embed.weight"] == pytest.approx(half)
    assert targets.at(fraction=51 / 101)["embed.weight"] == pytest.approx(half)
    assert targets.at(fraction=1)["embed.weight"] == targets.at(step=9999)["embed.weight"] == 0.5
    with pytest.raises(InvalidInput, match="step and tokens: 2 clocks given; one is allowed"):
        targets.at(step=1, tokens=1)
    with pytest.raises(
        InvalidInput, match=r"fraction: 1\.5 is out of range; allowed are numbers from 0 to 1"
    ):
        targets.at(fraction=1.5)


def test_a_fraction_is_of_the_run_and_not_of_what_was_measured_of_it() -> None:
    trajectories, recordings = grid({(1e-3, 0): 1.0, (1e-3, 1): 1.0})
    ended = [replace(recordings[0], final_step=201), recordings[1]]
    targets = answer(TargetQuery(family="demo", lr=1e-3), trajectories, ended)
    assert targets.final_step == 201
    assert targets.step_at(fraction=0.5) == 100.5
    assert targets.at(fraction=51 / 201)["embed.weight"] == pytest.approx(np.sqrt(0.5))
    assert targets.at(fraction=101 / 201) == targets.at(step=101) == targets.at(fraction=1)


@given(st.integers(1, 10**9), st.integers(1, 10**6))
def test_a_fraction_of_whole_numbers_names_a_step_exactly(step: int, longer: int) -> None:
    long = Trajectory(["a"], [()], [1, 10**9], [[1.0], [2.0]])
    assert (
        long.step_at(fraction=Fraction(min(step * longer, 10**9 * longer), 10**9 * longer)) == step
    )


def test_a_moment_is_the_same_step_of_targets_and_of_their_trajectory() -> None:
    base, targets = (
        trajectory(1.0),
        answer(TargetQuery(family="demo", lr=1e-3), *grid({(1e-3, 0): 1.0})),
    )
    for moment, step in (
        ({}, 1),
        ({"step": 7}, 7),
        ({"tokens": 510}, 51),
        ({"tokens": 9999}, 101),
        ({"fraction": 1}, 101),
    ):
        assert base.step_at(**moment) == targets.step_at(**moment) == step
    with pytest.raises(
        NotFound,
        match="tokens: 5 asked, but the run of this trajectory logged no tokens; ask by step",
    ):
        trajectory(1.0, tokens=None).step_at(tokens=5)
    with pytest.raises(
        NotFound, match="a trajectory without rows was asked for a moment; it needs one at least"
    ):
        Trajectory(["a"], [()], [], np.empty((0, 1))).step_at(step=1)


def test_tokens_that_nobody_logged_cannot_be_asked_for() -> None:
    each = recording(1e-3)
    targets = answer(
        TargetQuery(family="demo", lr=1e-3), {each.spec.id: trajectory(1.0, tokens=None)}, [each]
    )
    assert targets.tokens.tolist() == [-1, -1]
    with pytest.raises(
        NotFound, match=f"the recordings {each.spec.id} logged no tokens; ask by step"
    ):
        targets.at(tokens=5)


@pytest.mark.parametrize(
    ("tokens", "between"),
    [
        ((512, 512), "512 at step 1 and 512 at step 101"),  # those of one batch
        ((900, 100), "900 at step 1 and 100 at step 101"),  # counted anew after a resume
    ],
)
def test_tokens_that_do_not_grow_tell_no_moment(tokens: tuple[int, ...], between: str) -> None:
    each, base = recording(1e-3), trajectory(1.0, tokens=tokens)
    targets = answer(TargetQuery(family="demo", lr=1e-3), {each.spec.id: base}, [each])
    for asked in (targets, base):
        with pytest.raises(
            InvalidInput,
            match=f"tokens: 500 asked, but the .* logged {between}, and tokens seen so far grow",
        ):
            asked.step_at(tokens=500)


def test_what_a_run_did_not_log_of_its_tokens_goes_by_its_tokens_a_step() -> None:
    each = recording(1e-3)
    for tokens in ((10, -1, -1, -1), (-1, -1, 2010, -1), (-1, 1010, 2010, -1), (10, -1, -1, 3010)):
        base = trajectory(1.0, steps=(1, 101, 201, 301), tokens=tokens)
        targets = answer(TargetQuery(family="demo", lr=1e-3), {each.spec.id: base}, [each])
        assert targets.tokens.tolist() == [10, 1010, 2010, 3010]
        for moment, step in ((0, 1), (510, 51), (1510, 151), (3010, 301), (9999, 301)):
            assert base.step_at(tokens=moment) == targets.step_at(tokens=moment) == step


def test_a_seed_that_was_measured_less_long_does_not_shift_the_moments_of_the_others() -> None:
    recordings = [recording(1e-3, 0), recording(1e-3, 1)]
    spans = ((1, 101), (10, 1010)), ((1, 101, 251), (10, 1010, 2510))
    runs = {
        each.spec.id: trajectory(1.0, steps=steps, tokens=tokens)
        for each, (steps, tokens) in zip(recordings, spans, strict=True)
    }
    targets = answer(TargetQuery(family="demo", lr=1e-3), runs, recordings)
    assert targets.step_at(tokens=2010) == 201


def test_targets_at_a_single_step_can_be_asked_for() -> None:
    targets = answer(TargetQuery(family="demo", lr=1e-3, step=51), *grid({(1e-3, 0): 1.0}))
    assert targets.steps.tolist() == [51]
    assert targets["embed.weight"] == pytest.approx(np.sqrt(0.5))
    assert targets.final_step == 101


def test_the_answer_does_not_depend_on_the_order_of_the_listing() -> None:
    trajectories, recordings = grid(
        {(1e-3, 0): 1.0, (1e-3, 1): 3.0, (4e-3, 0): 4.0, (4e-3, 1): 7.0}
    )
    query = TargetQuery(family="demo", lr=2e-3)
    digests = {
        answer(query, trajectories, order).digest for order in (recordings, recordings[::-1])
    }
    assert len(digests) == 1


@given(st.lists(st.floats(0, 2.0**100, width=32) | st.just(float("nan")), min_size=1, max_size=6))
def test_a_digest_tells_contents_apart_and_nothing_else(row: list[float]) -> None:
    names, steps = [str(at) for at in range(len(row))], np.array([1])
    values = np.array([row], np.float32)
    digest = targets_digest(names, steps, values)
    assert (
        targets_digest(
            tuple(names), steps.copy(), np.where(np.isnan(values), -np.float32("nan"), values)
        )
        == digest
    )
    assert targets_digest(names, steps + 1, values) != digest
    assert (
        targets_digest(
            names, steps, np.where(np.isnan(values), 1, np.nextafter(values, np.float32(np.inf)))
        )
        != digest
    )
    assert targets_digest([*names[:-1], "other"], steps, values) != digest


def test_a_digest_is_the_same_on_every_machine() -> None:
    found = targets_digest(
        ["a", "b"], np.array([1, 101]), np.array([[1, 2], [3, np.nan]], np.float32)
    )
    assert found == "2558c7e6a8e356f294778859429f3e03352cb857ca9853f23e943ae93a08b21d"


def test_sources_of_two_models_are_refused() -> None:
    first, second = recording(1e-3), recording(1e-3, 1)
    wide = Trajectory(["embed.weight"], [(8, 8)], [1], [[1.0]])
    narrow = Trajectory(["embed.weight"], [(8, 4)], [1], [[1.0]])
    with pytest.raises(
        Ambiguous,
        match=r"are not of one model: 'embed\.weight' is of shape \[8, 4\] in one "
        r"and \[8, 8\] in another",
    ):
        answer(
            TargetQuery(family="demo", lr=1e-3),
            {first.spec.id: narrow, second.spec.id: wide},
            [first, second],
        )


def test_another_number_of_dimensions_is_another_architecture() -> None:
    query = TargetQuery(family="demo", lr=1e-3, names=("layers.5.q.weight",), shapes=((4,),))
    with pytest.raises(
        InvalidInput,
        match=r"shapes: 'layers\.5\.q\.weight' has 1 dimensions \(\[4\]\); \[2\] allowed",
    ):
        answer(query, *grid({(1e-3, 0): 1.0}))


def test_a_tensor_of_one_name_and_another_number_of_dimensions_is_refused() -> None:
    """A norm that comes first has the name of the base's first linear map."""
    names = ["0.weight", "1.weight", "3.weight"]
    base = Trajectory(names, [(8, 4), (8,), (2, 8)], [1], [[1.0, 2.0, 3.0]])
    one = recording(1e-3)

    def ask(*shapes: tuple[int, ...]) -> Targets:
        query = TargetQuery(family="demo", lr=1e-3, names=tuple(names), shapes=shapes)
        return answer(query, {one.spec.id: base}, [one])

    assert dict(ask((16, 4), (16,), (2, 16))) == {"0.weight": 1, "1.weight": 2, "3.weight": 3}
    with pytest.raises(InvalidInput, match=r"shapes: '0\.weight' has 1 dimensions"):
        ask((4,), (16, 4), (2, 16))


def test_the_family_s_axes_are_used_where_the_query_has_none() -> None:
    names = ("layers.0.q.weight", "layers.1.q.weight", "layers.2.q.weight", "layers.3.q.weight")
    query = TargetQuery(family="demo", lr=1e-3, names=names, depth="split")
    assert list(answer(query, *grid({(1e-3, 0): 1.0}), blocks=("layers.*",)).values()) == [
        1,
        1,
        2,
        2,
    ]
    with pytest.raises(NotFound, match=r"layers\.2\.q\.weight, layers\.3\.q\.weight not matched"):
        answer(query, *grid({(1e-3, 0): 1.0}), blocks=("stages.*",))


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ({"init_scale": 1}, {"init_scale": 2}, "init_scale is 1 or 2"),
        (
            {"config": {"initializer_range": 0.02}},
            {"config": {"initializer_range": 0.1}},
            "0.02 or",
        ),
        ({"schedule": "cosine", "steps": 9}, {"schedule": "linear", "steps": 9.0}, "cosine or lin"),
        ({"steps": 9, "job": "a", "seed": 0}, {"steps": 9, "job": "b", "seed": 1}, ""),
        ({"init_scale": 1}, {}, ""),
    ],
)
def test_base_recordings_of_several_experiments_are_said(
    first: dict[str, Any], second: dict[str, Any], said: str
) -> None:
    recordings, trajectories = [], {}
    for seed, config in enumerate((first, second)):
        each = recording(1e-3, seed)
        recordings.append(replace(each, spec=replace(each.spec, config=config)))
        trajectories[each.spec.id] = Trajectory(["w"], [(2, 2)], [1], [[1.0]])
    found = answer(TargetQuery(family="demo", lr=1e-3), trajectories, recordings)
    assert len(found.remarks) == bool(said)
    assert said in "".join(found.remarks)


@pytest.mark.parametrize(
    ("base", "depth", "said"),
    [
        (("layers.0.w",), "", True),  # one block has no coherence
        (("layers.0.w", "layers.1.w"), "", True),  # recorded by kronecker
        (("layers.0.w", "layers.1.w", "layers.*.w"), "", False),
        (("layers.0.w",), "split", False),
        (("layers.0.w", "layers.1.w", "layers.2.w", "layers.3.w"), "", False),
    ],
)
def test_a_coherence_that_the_base_does_not_say_is_said(
    base: tuple[str, ...], depth: str, said: bool
) -> None:
    shapes = [() if "*" in name else (2, 2) for name in base]
    one = recording(1e-3)
    names = tuple(f"layers.{block}.w" for block in range(4))
    query = TargetQuery(family="demo", lr=1e-3, names=names, depth=depth)
    trajectory = Trajectory(list(base), shapes, [1], [[1.0] * len(base)])
    found = answer(query, {one.spec.id: trajectory}, [one])
    assert ["the base does not say how far" in each for each in found.remarks] == [True] * said
