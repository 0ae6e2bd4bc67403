"""Which targets a model's tensors get, and multipliers from targets and measured FSLRs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flerm_core import Trajectory, match_targets
from flerm_core.errors import InvalidInput, NotFound
from flerm_core.matching.match import multipliers
from tests.core.matching.decoders import base, blocks_of, decoder

NAN = float("nan")


def test_only_the_given_block_axes_count() -> None:
    trajectory = Trajectory(["enc.0.w", "dec.0.w"], [(2, 2)] * 2, [1], [[1, 2]])
    with pytest.raises(
        NotFound, match=r"names: enc\.1\.w not matched by the base, which has enc\.0\.w, dec\.0\.w"
    ):
        match_targets(trajectory, ["enc.0.w", "enc.1.w", "dec.0.w", "dec.1.w"], blocks="dec.*")
    with pytest.raises(
        InvalidInput, match=r"'dec' is not an axis; an axis is a dotted path that ends in '\*'"
    ):
        match_targets(trajectory, ["enc.0.w"], blocks="dec")


def test_blocks_may_be_numbered_at_the_end_of_a_component() -> None:
    def named(style: str, blocks: int) -> list[str]:
        return ["stem.weight", *(f"{style}{block}.mlp.weight" for block in range(blocks))]

    def targets(style: str) -> list[float]:
        group = f"{style}*.mlp.weight"
        rows = Trajectory([*named(style, 2), group], [(2, 2)] * 4, [1], [[5, 3, 4, 6]])
        assert match_targets(rows, named(style, 2)) == dict(
            zip(named(style, 2), [5, 3, 4], strict=True)
        )
        return list(match_targets(rows, named(style, 4)).values())

    # rho = (36 - 25) / (49 - 25) of the joint FSLR 6.
    rho = 11 / 24
    wanted = 25 * (1 - rho) + 49 * rho
    factor = math.sqrt(wanted / (12.5 * (1 - rho) + 49 * rho))
    assert targets("enc.block_") == pytest.approx(
        [5, *(factor * half for half in (1.5, 1.5, 2, 2))]
    )
    assert targets("block") == targets("enc.block_") == targets("enc.")


def test_targets_are_read_at_the_step_that_is_asked_for() -> None:
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
    assert "(close: haed.weight to head.weight" in sentence


def test_a_plain_mlp_of_another_depth_is_refused() -> None:
    trajectory = Trajectory(
        ["0.weight", "2.weight", "4.weight"], [(8, 3), (8, 8), (2, 8)], [1], [[1, 2, 3]]
    )
    assert list(match_targets(trajectory, trajectory.names).values()) == [1, 2, 3]
    with pytest.raises(
        InvalidInput,
        match=r"'\*\.weight' counts 3 layers in the base and 4 in the target, "
        "but they differ in kind",
    ):
        match_targets(trajectory, ["0.weight", "2.weight", "4.weight", "6.weight"])


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


def test_unmeasured_tensors_keep_their_multipliers() -> None:
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


def test_a_noisy_tensor_keeps_its_multiplier() -> None:
    measured = {"a": 1.0, "b": 1.0, "c": 1.0, "bias": 0.9e-4, "small": 1.1e-4}
    found = multipliers(dict.fromkeys(measured, 1.0), measured, clamp=(2.0**-20, 2.0**20))
    assert found.noisy == ("bias",)
    assert found.values["bias"] == 1.0
    assert found.values["small"] == 2 ** (round(16 * math.log2(1 / 1.1e-4)) / 16)


def test_a_tensor_whose_target_is_noise_keeps_its_multiplier() -> None:
    """As a bias before a softmax: its FSLR in the base is rounding, and no rate is to be held."""
    targets = {"a": 1.0, "b": 1.0, "c": 1.0, "query": 0.9e-4, "small": 1.1e-4}
    found = multipliers(targets, dict.fromkeys(targets, 1.0), clamp=(2.0**-20, 2.0**20))
    assert found.noisy == ("query",)
    assert found.values["query"] == 1.0
    assert found.values["small"] == 2 ** (round(16 * math.log2(1.1e-4)) / 16)


def test_a_clamp_is_reported() -> None:
    found = multipliers(
        {"up": 1e4, "down": 1.0, "edge": 4096.0}, {"up": 1.0, "down": 1e4, "edge": 1.0}
    )
    assert found.values == {"up": 4096.0, "down": 1 / 4096, "edge": 4096.0}
    assert found.clamped == ("down", "up")


def test_depth_groups_get_no_multiplier() -> None:
    measured = {"layers.0.q": 2.0, "layers.*.q": 1.0}
    found = multipliers({"layers.0.q": 4.0, "layers.*.q": 9.0}, measured)
    assert found.values == {"layers.0.q": 2.0}
    with pytest.raises(NotFound, match=r"targets: none for layers\.0\.q"):
        multipliers({"layers.*.q": 4.0}, measured)


def test_with_only_other_tensors_keep_their_multipliers() -> None:
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


def test_targets_measurements_and_clamps_that_cannot_be_used_are_refused_by_name() -> None:
    with pytest.raises(NotFound, match="targets: none for b; there are targets for a"):
        multipliers({"a": 1.0}, {"a": 1.0, "b": 1.0})
    with pytest.raises(InvalidInput, match=r"measured: -1\.0 for 'a'"):
        multipliers({"a": 1.0}, {"a": -1.0})
    with pytest.raises(InvalidInput, match=r"clamp: \(2, 4\) is not allowed"):
        multipliers({"a": 1.0}, {"a": 1.0}, clamp=(2, 4))
