"""Depth rules: from the FSLRs of the base's blocks to targets for another number of blocks."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flerm_core import Trajectory, match_targets
from flerm_core.errors import InvalidInput, NotFound
from flerm_core.matching.depth_rules import DEFAULT_DEPTH, DEPTH_RULES
from flerm_core.matching.match import match_rows
from flerm_core.records.queries import DEPTH_RULE_NAMES
from tests.core.matching.decoders import base, blocks_of, decoder

NAN = float("nan")


def test_a_query_may_name_every_rule_and_no_other() -> None:
    assert tuple(DEPTH_RULES) == DEPTH_RULE_NAMES
    assert DEFAULT_DEPTH in DEPTH_RULE_NAMES


@pytest.mark.parametrize(
    ("base_blocks", "target_blocks", "expected"),
    [
        ([1.0, 2.0], 2, [1, 2]),
        ([1.0, 2.0], 4, [0.5, 0.5, 1, 1]),
        ([6.0], 3, [2, 2, 2]),
        ([1.0, 2.0], 3, [2 / 3, 1 / 3 + 2 / 3, 4 / 3]),
        ([1.0, 2.0, 4.0], 2, [2, 5]),
        ([1.0, 2.0, 4.0, 8.0], 1, [15]),
    ],
)
def test_split_gives_each_target_block_the_mass_of_its_interval(
    base_blocks: list[float], target_blocks: int, expected: list[float]
) -> None:
    targets = match_targets(base(base_blocks), decoder(target_blocks))
    assert list(targets) == decoder(target_blocks)
    assert blocks_of(targets) == pytest.approx(expected, rel=1e-12)
    assert (targets["embed.weight"], targets["head.weight"]) == (10, 20)


masses = st.lists(st.floats(2.0**-20, 2.0**20, width=32), min_size=1, max_size=12)


@given(masses, st.integers(1, 40))
def test_split_keeps_the_total(values: list[float], depth: int) -> None:
    targets = match_targets(base(values), decoder(depth))
    assert math.fsum(blocks_of(targets)) == pytest.approx(math.fsum(values), rel=1e-12)


@given(masses, st.sampled_from(sorted(DEPTH_RULES)))
def test_every_rule_is_the_identity_where_the_depths_agree(values: list[float], depth: str) -> None:
    trajectory = base(values)
    assert match_targets(trajectory, trajectory.names, depth=depth) == trajectory.at()
    assert (
        match_targets(trajectory, trajectory.names, depth=depth, blocks="layers.*")
        == trajectory.at()
    )


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
)
def test_split_keeps_the_total_over_uneven_stages(
    base_stages: list[int], target_stages: list[int]
) -> None:
    def stages(counts: list[int]) -> list[str]:
        return [
            f"stages.{stage}.blocks.{block}.w"
            for stage, count in enumerate(counts)
            for block in range(count)
        ]

    columns = {name: np.array([float(at + 1)]) for at, name in enumerate(stages(base_stages))}
    matched = match_rows(
        columns, stages(target_stages), whole_run=columns, blocks=["stages.*", "stages.*.blocks.*"]
    )
    assert list(matched) == stages(target_stages)
    assert sum(values[0] for values in matched.values()) == pytest.approx(
        sum(values[0] for values in columns.values())
    )


def test_coherent_keeps_the_joint_change_of_blocks_that_cohere_as_the_bases_do() -> None:
    # F = (3, 4) with a joint change of √37: ρ = (37 − 25) / (49 − 25) = ½.
    targets = blocks_of(
        match_targets(base([3.0, 4.0], joint=math.sqrt(37)), decoder(6), depth="coherent")
    )
    assert targets == pytest.approx([targets[0]] * 3 + [targets[0] * 4 / 3] * 3)
    assert sum(f**2 for f in targets) / 2 + sum(targets) ** 2 / 2 == pytest.approx(37, rel=1e-6)


@pytest.mark.parametrize(
    ("joint", "share"), [(7.0, 1 / 4), (5.0, 1 / 2), (4.9, 1 / 2), (9.0, 1 / 4)]
)
def test_coherent_is_split_for_blocks_that_move_together_and_root_for_blocks_that_do_not(
    joint: float, share: float
) -> None:
    targets = blocks_of(match_targets(base([3.0, 4.0], joint=joint), decoder(8), depth="coherent"))
    assert targets == pytest.approx([3 * share] * 4 + [4 * share] * 4, rel=1e-6)


def test_coherent_takes_the_coherence_of_the_whole_run_at_every_step() -> None:
    names = ["layers.0.w", "layers.1.w", "layers.*.w"]
    # Blocks of FSLR 1 move the outputs together at the first step (J = 2), in quadrature later: ρ
    # is 1, 0, 0, on average ⅓.
    run = Trajectory(
        names,
        [(4, 4)] * 3,
        [1, 101, 201],
        [[1.0, 1.0, 2.0], [1.0, 1.0, 2**0.5], [1.0, 1.0, 2**0.5]],
    )
    for step in (1, 101, 300):
        targets = match_targets(
            run, [f"layers.{block}.w" for block in range(8)], step=step, depth="coherent"
        )
        assert sum(f**2 for f in targets.values()) * 2 / 3 + sum(
            targets.values()
        ) ** 2 / 3 == pytest.approx(2 * 2 / 3 + 4 / 3)


def test_root_divides_by_the_square_root_of_the_blocks_and_needs_no_depth_group() -> None:
    assert blocks_of(match_targets(base([3.0, 4.0]), decoder(8), depth="root")) == pytest.approx(
        [1.5] * 4 + [2.0] * 4
    )


def test_coherent_without_a_recorded_joint_change_is_split() -> None:
    without = match_targets(base([3.0, 4.0]), decoder(8), depth="coherent")
    assert blocks_of(without) == pytest.approx([0.75] * 4 + [1.0] * 4)
    unmeasured = match_targets(base([3.0, 4.0], joint=NAN), decoder(8), depth="coherent")
    assert blocks_of(unmeasured) == pytest.approx([0.75] * 4 + [1.0] * 4)


def test_coherent_takes_the_coherence_of_a_wider_depth_group_where_there_is_no_other() -> None:
    tensors = [f"layers.{layer}.experts.{at}.w" for layer in range(8) for at in range(2)]
    columns = {name: np.array([3.0]) for name in tensors[:4]}
    # Four of 3 with a joint change of 6 do not cohere, with one of 12 wholly.
    apart, together = (
        {**columns, "layers.*.experts.*.w": np.array([joint])} for joint in (6.0, 12.0)
    )
    apart = match_rows(apart, tensors, whole_run=apart, depth="coherent")
    together = match_rows(together, tensors, whole_run=together, depth="coherent")
    assert [values[0] for values in apart.values()] == pytest.approx([1.5] * 16)
    assert [values[0] for values in together.values()] == pytest.approx([0.75] * 16)


def test_the_joint_change_of_one_layer_over_all_blocks_is_preferred_to_that_of_all_layers() -> None:
    """A model with two equal layers in each block records depth groups along both axes."""
    tensors = [f"{block}.{layer}.weight" for block in range(8) for layer in range(2)]
    columns = {name: np.array([1.0]) for name in tensors[:8]}
    columns |= {
        "*.*.weight": np.array([8.0]),
        "*.0.weight": np.array([2.0]),  # of four blocks of FSLR 1: they do not cohere
        "*.1.weight": np.array([4.0]),  # they cohere wholly
    }
    matched = match_rows(columns, tensors, whole_run=columns, depth="coherent")
    wanted = {name: 0.5**0.5 if name.endswith("0.weight") else 0.5 for name in tensors}
    assert {name: values[0] for name, values in matched.items()} == pytest.approx(wanted)


def test_coherent_from_a_single_block_shares_it_out_as_split_does() -> None:
    assert blocks_of(match_targets(base([3.0]), decoder(2), depth="coherent")) == [1.5, 1.5]


def test_the_coherence_of_experts_is_not_taken_for_that_of_layers() -> None:
    tensors = [f"layers.{layer}.experts.{at}.w" for layer in range(2) for at in range(2)]
    columns = {name: np.array([3.0]) for name in tensors[:2]}
    columns |= {
        "layers.*.experts.*.w": np.array([math.sqrt(18)]),
        "layers.0.experts.*.w": np.array([math.sqrt(18)]),
    }
    matched = match_rows(columns, tensors, whole_run=columns, depth="coherent")
    assert [values[0] for values in matched.values()] == pytest.approx([1.5] * 4)


def test_an_encoder_and_a_decoder_are_carried_to_another_depth_one_by_one() -> None:
    names = ["encoder.0.w", "encoder.1.w", "decoder.0.w"]
    trajectory = Trajectory(names, [(2, 2)] * 3, [1], [[1, 2, 4]])
    wanted = [
        "encoder.0.w",
        "encoder.1.w",
        "encoder.2.w",
        "encoder.3.w",
        "decoder.0.w",
        "decoder.1.w",
    ]
    assert list(match_targets(trajectory, wanted).values()) == [0.5, 0.5, 1, 1, 2, 2]


def test_an_unknown_depth_rule_is_refused_by_its_name() -> None:
    with pytest.raises(
        InvalidInput, match="depth: 'cubic' is not a rule; allowed are split, coherent, root"
    ):
        match_targets(base([1.0]), decoder(1), depth="cubic")


def test_the_time_of_a_match_grows_with_the_blocks_and_not_with_their_square() -> None:
    """Ten thousand blocks: their square took minutes."""
    count = 10_000
    wide = base([2.0**-10] * count)
    started = time.process_time()
    found = match_targets(wide, decoder(count - 1))
    assert time.process_time() - started < 10
    assert math.fsum(blocks_of(found)) == pytest.approx(count * 2.0**-10, rel=1e-9)


def test_many_names_that_do_not_match_are_told_at_once() -> None:
    names = [f"layers.{at}.a_weight_with_quite_a_long_name" for at in range(20_000)]
    trajectory = Trajectory(names, [(2, 2)] * len(names), [1], np.ones((1, len(names))))
    started = time.process_time()
    with pytest.raises(NotFound, match="not matched by the base"):
        match_targets(trajectory, [f"blocks.{at}.a_weight_with_a_long_name" for at in range(5)])
    assert time.process_time() - started < 5


def test_names_are_compared_with_few_of_many_axes_and_groups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thousand axes of ten blocks each, with and without joint changes."""
    from flerm_core import parameter_names

    looked_up = 0
    below = parameter_names._below

    def counted(*arguments, **more):
        nonlocal looked_up
        looked_up += 1
        return below(*arguments, **more)

    monkeypatch.setattr(parameter_names, "_below", counted)
    tensors = [f"a{at}.{block}.w" for at in range(1000) for block in range(4)]
    columns = {name: np.ones(1) for name in [*tensors, *(f"a{at}.*.w" for at in range(1000))]}
    asked = [f"a{at}.{block}.w" for at in range(1000) for block in range(3)]
    targets = match_rows(columns, asked, whole_run=columns)
    assert set(targets) == set(asked)
    assert looked_up < 20 * len(columns)
