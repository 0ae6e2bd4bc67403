"""From a base's FSLRs to another model's targets, and from targets and measurements to multipliers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flerm_core import Trajectory, match_targets
from flerm_core.errors import InvalidInput, NotFound
from flerm_core.matching.depth_rules import DEPTH_RULES
from flerm_core.matching.match import match_rows, multipliers

NAN = float("nan")


def decoder(blocks: int, axis: str = "layers") -> list[str]:
    """A model of `blocks` blocks."""
    return ["embed.weight", *(f"{axis}.{at}.attn.q.weight" for at in range(blocks)), "head.weight"]


def base(values: list[float], joint: float | None = None) -> Trajectory:
    """A recording of a decoder whose blocks measured `values`, with embed 10 and head 20."""
    names = decoder(len(values)) + (["layers.*.attn.q.weight"] if joint is not None else [])
    row = [10.0, *values, 20.0] + ([joint] if joint is not None else [])
    shapes = [(4, 4)] * (len(values) + 2) + [()] * (joint is not None)
    return Trajectory(names, shapes, [1, 101], [row, [4 * value for value in row]])


def blocks_of(targets: dict[str, float]) -> list[float]:
    return [value for name, value in targets.items() if name.startswith("layers.")]


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


def test_root_divides_by_the_square_root_of_the_blocks_and_needs_no_role() -> None:
    assert blocks_of(match_targets(base([3.0, 4.0]), decoder(8), depth="root")) == pytest.approx(
        [1.5] * 4 + [2.0] * 4
    )


def test_coherent_without_a_recorded_joint_change_is_split() -> None:
    without = match_targets(base([3.0, 4.0]), decoder(8), depth="coherent")
    assert blocks_of(without) == pytest.approx([0.75] * 4 + [1.0] * 4)
    unmeasured = match_targets(base([3.0, 4.0], joint=NAN), decoder(8), depth="coherent")
    assert blocks_of(unmeasured) == pytest.approx([0.75] * 4 + [1.0] * 4)


def test_coherent_reads_how_far_blocks_cohere_from_a_wider_role_where_there_is_no_other() -> None:
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


def test_the_joint_change_of_one_layer_within_blocks_counts_before_that_of_all_layers() -> None:
    """As a model of two square layers in each block has it: along both axes, along each for itself."""
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


def test_how_far_experts_cohere_says_nothing_of_layers() -> None:
    tensors = [f"layers.{layer}.experts.{at}.w" for layer in range(2) for at in range(2)]
    columns = {name: np.array([3.0]) for name in tensors[:2]}
    columns |= {
        "layers.*.experts.*.w": np.array([math.sqrt(18)]),
        "layers.0.experts.*.w": np.array([math.sqrt(18)]),
    }
    matched = match_rows(columns, tensors, whole_run=columns, depth="coherent")
    assert [values[0] for values in matched.values()] == pytest.approx([1.5] * 4)


def test_an_encoder_and_a_decoder_deepen_each_by_itself() -> None:
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


def test_only_given_axes_count() -> None:
    trajectory = Trajectory(["enc.0.w", "dec.0.w"], [(2, 2)] * 2, [1], [[1, 2]])
    with pytest.raises(
        NotFound, match=r"names: enc\.1\.w not matched by the base, which has enc\.0\.w, dec\.0\.w"
    ):
        match_targets(trajectory, ["enc.0.w", "enc.1.w", "dec.0.w", "dec.1.w"], blocks="dec.*")
    with pytest.raises(
        InvalidInput, match=r"'dec' is not an axis; an axis is a dotted path that ends in '\*'"
    ):
        match_targets(trajectory, ["enc.0.w"], blocks="dec")


def test_targets_are_read_at_the_step_asked() -> None:
    assert blocks_of(match_targets(base([1.0, 3.0]), decoder(2), step=51)) == pytest.approx([2, 6])
    assert blocks_of(match_targets(base([1.0, 3.0]), decoder(2), step=10**6)) == [4, 12]


def test_names_may_be_wrapped_and_are_answered_as_asked() -> None:
    wrapped = [f"module._orig_mod.{name}" for name in decoder(2)]
    assert list(match_targets(base([1.0, 2.0]), wrapped)) == wrapped
    with pytest.raises(InvalidInput, match=r"are the same parameter 'head\.weight'"):
        match_targets(base([1.0]), ["head.weight", "module.head.weight"])


def test_what_the_base_did_not_measure_has_no_target() -> None:
    targets = match_targets(base([1.0, NAN]), decoder(4))
    assert blocks_of(targets)[:2] == [0.5, 0.5]
    assert all(math.isnan(value) for value in blocks_of(targets)[2:])


def test_every_unmatched_name_is_listed_beside_what_there_is() -> None:
    with pytest.raises(NotFound) as caught:
        match_targets(base([1.0]), ["embed.weight", "haed.weight", "layers.0.mlp.weight"])
    sentence = str(caught.value)
    assert sentence.startswith(
        "names: haed.weight, layers.0.mlp.weight not matched by the base, which has embed.weight,"
    )
    assert "(close: head.weight" in sentence


def test_a_plain_mlp_of_another_depth_is_no_guess() -> None:
    trajectory = Trajectory(
        ["0.weight", "2.weight", "4.weight"], [(8, 3), (8, 8), (2, 8)], [1], [[1, 2, 3]]
    )
    assert list(match_targets(trajectory, trajectory.names).values()) == [1, 2, 3]
    with pytest.raises(
        InvalidInput,
        match=r"'\*\.weight' counts 3 layers in the base and 4 in the target, but they differ in kind",
    ):
        match_targets(trajectory, ["0.weight", "2.weight", "4.weight", "6.weight"])


def test_an_unknown_rule_is_named() -> None:
    with pytest.raises(
        InvalidInput, match="depth: 'cubic' is not a rule; allowed are split, coherent, root"
    ):
        match_targets(base([1.0]), decoder(1), depth="cubic")


def test_a_multiplier_is_target_over_measured_in_sixteenths_of_an_octave() -> None:
    found = multipliers({"a": 8.0, "b": 3.0, "c": 1.0}, {"a": 2.0, "b": 3.0, "c": 1.03})
    assert found.values == {"a": 4.0, "b": 1.0, "c": 2 ** (-1 / 16)}
    assert (found.unmeasured, found.noisy, found.clamped) == ((), (), ())


positive = st.floats(2.0**-40, 2.0**40, width=32)


@given(positive, positive)
def test_a_multiplier_is_right_to_a_thirty_second_of_an_octave(
    target: float, measured: float
) -> None:
    value = multipliers({"a": target}, {"a": measured}, clamp=(2.0**-90, 2.0**90)).values["a"]
    assert abs(math.log2(value) - math.log2(target / measured)) <= 1 / 32 + 1e-9
    assert (16 * math.log2(value)) == pytest.approx(round(16 * math.log2(value)), abs=1e-9)


def test_unmeasured_tensors_are_left_alone() -> None:
    measured = {"nan": NAN, "zero": 0.0, "infinite": math.inf, "base": 2.0, "good": 1.0}
    targets = {"absent": 2.0, "nan": 2.0, "zero": 2.0, "infinite": 2.0, "base": NAN, "good": 2.0}
    found = multipliers(targets, measured)
    assert found.unmeasured == ("absent", "base", "infinite", "nan", "zero")
    assert found.values == {
        "absent": 1.0,
        "nan": 1.0,
        "zero": 1.0,
        "infinite": 1.0,
        "base": 1.0,
        "good": 2.0,
    }
    assert multipliers(targets, measured, previous={"nan": 0.5}).values["nan"] == 0.5


def test_noise_is_left_alone() -> None:
    measured = {"a": 1.0, "b": 1.0, "c": 1.0, "bias": 0.9e-4, "small": 1.1e-4}
    found = multipliers(dict.fromkeys(measured, 1.0), measured, clamp=(2.0**-20, 2.0**20))
    assert found.noisy == ("bias",)
    assert found.values["bias"] == 1.0
    assert found.values["small"] == 2 ** (round(16 * math.log2(1 / 1.1e-4)) / 16)


def test_a_clamp_is_reported() -> None:
    found = multipliers(
        {"up": 1e6, "down": 1e-6, "edge": 4096.0}, {"up": 1.0, "down": 1.0, "edge": 1.0}
    )
    assert found.values == {"up": 4096.0, "down": 1 / 4096, "edge": 4096.0}
    assert found.clamped == ("down", "up")


def test_depth_groups_are_passed_over() -> None:
    measured = {"layers.0.q": 2.0, "layers.*.q": 1.0}
    found = multipliers({"layers.0.q": 4.0, "layers.*.q": 9.0}, measured)
    assert found.values == {"layers.0.q": 2.0}
    with pytest.raises(NotFound, match=r"targets: none for layers\.0\.q"):
        multipliers({"layers.*.q": 4.0}, measured)


def test_all_but_the_tensors_in_only_are_left_alone() -> None:
    found = multipliers({"a": 4.0, "b": 4.0}, {"a": 1.0, "b": 1.0}, previous={"b": 2.0}, only=["a"])
    assert found.values == {"a": 4.0, "b": 2.0}


numbers = st.floats(0, width=32) | st.just(NAN)


@given(st.dictionaries(st.sampled_from("abcdef"), st.tuples(numbers, numbers)))
def test_nothing_that_is_not_finite_is_ever_applied(pairs: dict[str, tuple[float, float]]) -> None:
    found = multipliers(
        {name: pair[0] for name, pair in pairs.items()},
        {name: pair[1] for name, pair in pairs.items()},
    )
    assert found.values.keys() == pairs.keys()
    assert all(1 / 4096 <= value <= 4096 for value in found.values.values())


def test_what_cannot_be_used_is_named() -> None:
    with pytest.raises(NotFound, match="targets: none for b; there are targets for a"):
        multipliers({"a": 1.0}, {"a": 1.0, "b": 1.0})
    with pytest.raises(InvalidInput, match=r"measured: -1\.0 for 'a'"):
        multipliers({"a": 1.0}, {"a": -1.0})
    with pytest.raises(InvalidInput, match=r"clamp: \(2, 4\) is not allowed"):
        multipliers({"a": 1.0}, {"a": 1.0}, clamp=(2, 4))
