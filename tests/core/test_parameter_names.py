"""What a parameter is called, and which numbers in its name count blocks."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flerm_core.errors import InvalidInput
from flerm_core.parameter_names import (
    block_axes,
    canonical,
    canonical_names,
    depth_groups,
    expand,
    find_axes,
    is_depth_group,
    split_name,
)


@pytest.mark.parametrize(
    ("wrapped", "bare"),
    [
        ("module.layers.0.weight", "layers.0.weight"),
        ("_orig_mod.module.head.bias", "head.bias"),
        (
            "layers.3._fsdp_wrapped_module.attn._checkpoint_wrapped_module.q.weight",
            "layers.3.attn.q.weight",
        ),
        (
            "base_model.model.model.layers.0.q_proj.lora_A.default.weight",
            "model.layers.0.q_proj.lora_A.weight",
        ),
        ("module.base_model.model.wte.lora_embedding_B.default", "wte.lora_embedding_B"),
        ("default.weight", "default.weight"),
        ("base_model.weight", "base_model.weight"),
        ("module", "module"),
        ("weight", "weight"),
    ],
)
def test_wrappers_leave_no_mark_on_a_name(wrapped: str, bare: str) -> None:
    assert canonical(wrapped) == bare


@given(
    st.lists(
        st.sampled_from(["module", "_orig_mod", "layers", "0", "weight", "lora_A", "default"]),
        min_size=1,
        max_size=6,
    )
)
def test_a_canonical_name_is_its_own(path: list[str]) -> None:
    once = canonical(".".join(path))
    assert canonical(once) == once


def test_two_parameters_that_become_one_are_refused() -> None:
    assert canonical_names(["module.a", "module.b"]) == ["a", "b"]
    with pytest.raises(
        InvalidInput, match=r"'a\.weight' and 'module\.a\.weight' both mean 'a\.weight'"
    ):
        canonical_names(["a.weight", "module.a.weight"])


def test_a_name_is_split_along_given_axes_wherever_they_stand() -> None:
    assert split_name("layers.3.attn.q.weight", ["layers.*"]) == ("layers.*.attn.q.weight", (3,))
    assert split_name("model.layers.12.mlp.0.weight", ["layers.*"]) == (
        "model.layers.*.mlp.0.weight",
        (12,),
    )
    assert split_name("stages.1.blocks.4.w", ["stages.*", "stages.*.blocks.*"]) == (
        "stages.*.blocks.*.w",
        (1, 4),
    )
    assert split_name("stages.1.blocks.4.w", ["stages.*.blocks.*"]) == ("stages.1.blocks.*.w", (4,))
    assert split_name("head.weight", ["layers.*"]) == ("head.weight", ())


def names(template: str, *counts: int) -> list[str]:
    """Every filling of the template's `{}` with numbers below the counts."""
    found = [template]
    for count in counts:
        found = [name.replace("{}", str(number), 1) for name in found for number in range(count)]
    return found


def test_axes_are_where_the_counts_differ() -> None:
    base = [
        "embed.weight",
        *names("encoder.{}.attn.q", 2),
        *names("decoder.{}.mlp.{}.weight", 2, 2),
        "head.weight",
    ]
    target = [
        "embed.weight",
        *names("encoder.{}.attn.q", 4),
        *names("decoder.{}.mlp.{}.weight", 3, 2),
        "head.weight",
    ]
    assert find_axes(base, target) == ("decoder.*", "encoder.*")


def test_numbers_of_a_sequential_are_names_when_the_counts_agree() -> None:
    assert find_axes(["0.weight", "2.weight"], ["0.weight", "2.weight"]) == ()
    assert find_axes(
        names("layers.{}.mlp.{}.weight", 2, 3), names("layers.{}.mlp.{}.weight", 5, 3)
    ) == ("layers.*",)


def test_nested_axes_and_axes_of_one_stage_are_found() -> None:
    assert find_axes(names("s.{}.b.{}.w", 2, 2), names("s.{}.b.{}.w", 4, 6)) == ("s.*", "s.*.b.*")
    base = [*names("s.0.b.{}.w", 2), *names("s.1.b.{}.w", 2)]
    target = [*names("s.0.b.{}.w", 2), *names("s.1.b.{}.w", 5)]
    assert find_axes(base, target) == ("s.1.b.*",)


def test_blocks_of_one_model_run_from_zero_and_have_equal_shapes() -> None:
    decoder = [*names("layers.{}.attn.q.weight", 3), *names("layers.{}.attn.o.weight", 3)]
    assert block_axes(decoder, [(4, 4)] * 6) == ("layers.*",)
    assert block_axes(names("blocks.{}.weight", 2), [(4, 4)] * 2) == ("blocks.*",)


def test_layers_of_a_plain_sequential_are_no_blocks() -> None:
    assert block_axes(["0.weight", "2.weight", "4.weight"], [(8, 3), (8, 8), (2, 8)]) == ()
    assert block_axes(["0.weight", "1.weight"], [(8, 3), (2, 8)]) == ()
    inner = [*names("layers.{}.mlp.0.weight", 2), *names("layers.{}.mlp.2.weight", 2)]
    assert block_axes(inner, [(8, 4), (8, 4), (4, 8), (4, 8)]) == ("layers.*",)


def test_the_first_block_of_a_convolutional_stage_may_differ() -> None:
    stage = [*names("layer1.{}.conv1.weight", 3), *names("layer1.{}.conv2.weight", 3)]
    assert block_axes(stage, [(8, 4, 1, 1), (8, 16, 1, 1), (8, 16, 1, 1), *[(8, 8, 3, 3)] * 3]) == (
        "layer1.*",
    )


def test_an_axis_counts_at_its_first_place_in_a_name_and_a_leading_star_at_the_beginning() -> None:
    assert split_name("3.0.weight", ["*"]) == ("*.0.weight", (3,))
    assert split_name("3.1.0.weight", ["*", "*.*"]) == ("*.*.0.weight", (3, 1))
    assert split_name("head.0.weight", ["*"]) == ("head.0.weight", ())
    assert split_name("layers.3.layers.1.weight", ["layers.*"]) == (
        "layers.*.layers.1.weight",
        (3,),
    )


def test_blocks_of_layers_in_nested_sequentials_are_counted_and_their_layers_are_not() -> None:
    nested = names("{}.{}.weight", 3, 2)
    shapes = [(16, 4), (4, 16)] * 3
    assert block_axes(nested, shapes) == ("*",)
    assert list(depth_groups(nested, block_axes(nested, shapes))) == ["*.0.weight", "*.1.weight"]


def test_a_depth_group_stands_for_several_tensors() -> None:
    model = ["embed.weight", *names("layers.{}.attn.q", 2), "layers.0.only"]
    assert depth_groups(model, ["layers.*"]) == {
        "layers.*.attn.q": ["layers.0.attn.q", "layers.1.attn.q"]
    }
    assert expand("layers.*.attn.q", [*model, "layers.*.attn.q"]) == [
        "layers.0.attn.q",
        "layers.1.attn.q",
    ]


def test_several_axes_have_a_depth_group_for_each_choice_among_them() -> None:
    model = names("layers.{}.experts.{}.w", 2, 3)
    roles = depth_groups(model, ["layers.*", "layers.*.experts.*"])
    assert roles["layers.*.experts.*.w"] == model
    assert roles["layers.*.experts.2.w"] == ["layers.0.experts.2.w", "layers.1.experts.2.w"]
    assert roles["layers.1.experts.*.w"] == model[3:]
    assert len(roles) == 1 + 3 + 2


parts = st.sampled_from(["a", "b", "0", "1", "a1", "*"])
paths = st.lists(parts, min_size=1, max_size=5).map(".".join)
some_axes = st.lists(
    st.builds(
        lambda path, star: ".".join([*path, star]),
        st.lists(parts, max_size=2),
        st.sampled_from(["*", "a*"]),
    ),
    max_size=5,
)


def test_a_number_that_ends_a_component_counts_blocks() -> None:
    base = ["conv_proj.weight", *names("encoder.layers.encoder_layer_{}.mlp.{}.weight", 2, 2)]
    target = ["conv_proj.weight", *names("encoder.layers.encoder_layer_{}.mlp.{}.weight", 5, 2)]
    axis = "encoder.layers.encoder_layer_*"
    assert find_axes(base, target) == (axis,)
    shapes = [(8, 4, 2, 2), *[(16, 4), (4, 16)] * 2]
    assert block_axes(base, shapes) == (axis,)
    group = "encoder.layers.encoder_layer_*.mlp.1.weight"
    members = [each for each in base if each.endswith("mlp.1.weight")]
    assert depth_groups(base, [axis])[group] == members == expand(group, base)
    assert is_depth_group(group)
    assert split_name("net.block12.fc.bias", ["block*"]) == ("net.block*.fc.bias", (12,))


def test_numbers_that_end_a_component_may_begin_at_one_and_stand_beside_other_modules() -> None:
    def model(blocks: int) -> list[str]:
        numbered = [f"block{number}.fc.weight" for number in range(1, blocks + 1)]
        return ["embed.weight", *numbered, "head.weight"]

    assert find_axes(model(2), model(3)) == ("block*",)
    assert block_axes(model(3), [(8, 4), *[(4, 4)] * 3, (8, 4)]) == ("block*",)
    assert block_axes(model(3), [(8, 4), (4, 4), (4, 4), (8, 4), (8, 4)]) == ()


@pytest.mark.parametrize(
    ("base", "target"),
    [
        (["ln_1.weight", "ln_2.weight"], ["ln_1.weight", "ln_2.weight", "ln_3.weight"]),
        (["fc1.lora_A.weight"], ["fc1.lora_A.weight", "fc2.lora_A.weight"]),
        (["layer2.a.weight"], ["layer2.a.weight", "layer3.a.weight"]),
        (["b0.a.weight"], ["b0.a.weight", "b2.a.weight"]),
        (
            [*names("h.{}.attn1.q.weight", 2), *names("h.{}.ln.weight", 2)],
            [*names("h.{}.attn1.q.weight", 2), *names("h.{}.attn2.q.weight", 2), "h.0.ln.weight"],
        ),
    ],
    ids=["layers of a block", "adapters", "from two", "a gap", "modules of a block"],
)
def test_numbers_that_tell_layers_apart_are_names(base: list[str], target: list[str]) -> None:
    assert find_axes(base, target) == ()
    for model in (base, target):
        axes = block_axes(model, [(4, 4)] * len(model))
        assert not [axis for axis in axes if axis not in ("*", "h.*")]


@given(paths, some_axes)
def test_a_name_is_split_where_each_axis_first_fits(name: str, axes: list[str]) -> None:
    path = name.split(".")
    stars = [re.sub(r"^(.*?)\d+$", r"\1*", part) for part in path]
    starred = set()
    for axis in axes:
        pattern = axis.split(".")
        for start in range(1 if pattern[0] == "*" else len(path)):
            part = list(zip(path, stars, strict=True))[start : start + len(pattern)]
            if len(part) == len(pattern) and all(
                want in have for want, have in zip(pattern, part, strict=True)
            ):
                starred.add(start + len(pattern) - 1)
                break
    places = sorted(at for at in starred if stars[at] != path[at])
    template = [star if at in places else path[at] for at, star in enumerate(stars)]
    numbers = tuple(int(path[at].removeprefix(stars[at][:-1])) for at in places)
    assert split_name(name, axes) == (".".join(template), numbers)
