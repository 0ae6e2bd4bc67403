"""The built-in models: names that users read in tables, the initialisation of Appendix A, and scale
invariance at the start."""

from __future__ import annotations

import math

import pytest
import torch

from flerm_core.errors import InvalidInput, NotFound
from flerm_experiments.workloads import WORKLOADS, Scale, workload_named

DECODERS = ["decoder", "decoder-postnorm", "decoder-prenormpostmod"]
RESIDUAL = ["resmlp", *DECODERS, "decoder-prenormpostmod-affine"]
SCALED = [*RESIDUAL, "mlp", "mlp-linear"]


def initial_output(name: str, scale: Scale, seed: int = 0) -> torch.Tensor:
    workload = WORKLOADS[name]
    inputs, _ = next(workload.batches(seed=0))
    with torch.no_grad():
        return workload.build(scale, seed=seed)(inputs)


def test_resmlp_has_readable_names_and_base_shapes() -> None:
    shapes = {
        name: tuple(p.shape)
        for name, p in WORKLOADS["resmlp"].build(Scale(), seed=0).named_parameters()
    }
    assert shapes == {
        "input.weight": (32, 64),
        "input.bias": (32,),
        **{f"layers.{j}.weight": (32, 32) for j in range(4)},
        **{f"layers.{j}.bias": (32,) for j in range(4)},
        "readout.weight": (10, 32),
        "readout.bias": (10,),
    }


def test_decoder_keeps_query_key_and_value_apart_and_names_them() -> None:
    shapes = {
        name: tuple(p.shape)
        for name, p in WORKLOADS["decoder"].build(Scale(), seed=0).named_parameters()
    }
    weights = {
        name: shape
        for name, shape in shapes.items()
        if name.endswith("weight") and ".1." not in name
    }
    assert weights == {
        "embedding.weight": (256, 32),
        "positions.weight": (64, 32),
        "layers.0.attn.q.weight": (32, 32),
        "layers.0.attn.k.weight": (32, 32),
        "layers.0.attn.v.weight": (32, 32),
        "layers.0.attn.out.weight": (32, 32),
        "layers.0.ff.up.weight": (128, 32),
        "layers.0.ff.down.weight": (32, 128),
        "readout.weight": (256, 32),
    }
    assert not any("norm" in name for name in shapes), "norms have no affine part"


@pytest.mark.parametrize("name", SCALED)
def test_width_widens_and_depth_repeats_blocks_without_renaming(name: str) -> None:
    base = dict(WORKLOADS[name].build(Scale(), seed=0).named_parameters())
    big = dict(WORKLOADS[name].build(Scale(width=4, depth=2), seed=0).named_parameters())
    blocks = {int(key.split(".")[1]) for key in base if key.startswith("layers.")}
    assert {int(key.split(".")[1]) for key in big if key.startswith("layers.")} == set(
        range(2 * len(blocks))
    )
    assert set(base) < set(big)
    assert big["readout.weight"].shape[1] == 4 * base["readout.weight"].shape[1]


@pytest.mark.parametrize("init_scale", [0.25, 1.0, 4.0])
def test_resmlp_block_weights_have_he_variance_over_blocks(init_scale: float) -> None:
    model = WORKLOADS["resmlp"].build(Scale(width=16, depth=2, init_scale=init_scale), seed=3)
    hidden, blocks = 512, 8
    expected = init_scale * math.sqrt(2 / hidden / blocks)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif name.startswith("layers."):
            assert parameter.std().item() == pytest.approx(expected, rel=0.01)
    assert model.get_parameter("input.weight").std().item() == pytest.approx(
        math.sqrt(1 / 64), rel=0.02
    )
    assert model.get_parameter("readout.weight").std().item() == pytest.approx(
        math.sqrt(2 / hidden), rel=0.04
    )


def test_decoder_weights_have_he_variance_and_unit_embeddings() -> None:
    model = WORKLOADS["decoder"].build(Scale(width=8, init_scale=0.5), seed=1)
    d = 256
    expected = {
        "embedding.weight": 1.0,
        "positions.weight": 1.0,
        "layers.0.attn.q.weight": 0.5 * math.sqrt(1 / d),
        "layers.1.attn.out.weight": 0.5 * math.sqrt(1 / d),
        "layers.0.ff.up.weight": 0.5 * math.sqrt(1 / d),
        "layers.0.ff.down.weight": 0.5 * math.sqrt(2 / (4 * d)),
        "readout.weight": math.sqrt(1 / d),
    }
    for name, std in expected.items():
        assert model.get_parameter(name).std().item() == pytest.approx(std, rel=0.02), name


@pytest.mark.parametrize("name", RESIDUAL)
@pytest.mark.parametrize(("width", "depth"), [(1, 2), (1, 8), (4, 1)])
def test_initial_outputs_have_the_same_size_at_every_depth_and_width(
    name: str, width: int, depth: int
) -> None:
    # The digits' ten outputs at hidden size 32 scatter by 10 % from seed to seed: there all widths
    # are taken 8 times as large.
    unit, seeds = (8, 16) if name == "resmlp" else (1, 4)

    def rms(at: Scale) -> float:
        return math.sqrt(
            sum(initial_output(name, at, seed).square().mean().item() for seed in range(seeds))
            / seeds
        )

    assert rms(Scale(width=unit * width, depth=depth)) == pytest.approx(
        rms(Scale(width=unit)), rel=0.08
    )


def test_the_product_of_normalised_queries_and_keys_ignores_their_scale() -> None:
    model = WORKLOADS["decoder"].build(Scale(), seed=0)
    inputs, _ = next(WORKLOADS["decoder"].batches(seed=0))
    with torch.no_grad():
        before = model(inputs)
        model.get_parameter("layers.0.attn.q.weight").mul_(8.0)
        model.get_parameter("layers.0.attn.k.weight").mul_(0.5)
        torch.testing.assert_close(model(inputs), before, atol=2e-3, rtol=0)


def test_prenormpostmod_ignores_the_initial_scale_of_its_blocks() -> None:
    scaled = initial_output("decoder-prenormpostmod", Scale(init_scale=4.0))
    torch.testing.assert_close(
        scaled, initial_output("decoder-prenormpostmod", Scale()), atol=2e-3, rtol=0
    )


@pytest.mark.parametrize("name", DECODERS)
def test_affine_norms_change_nothing_at_the_start_and_train(name: str) -> None:
    plain, affine = (
        WORKLOADS[each].build(Scale(depth=2), seed=0) for each in (name, f"{name}-affine")
    )
    added = {
        each: p
        for each, p in affine.named_parameters()
        if each not in dict(plain.named_parameters())
    }
    kinds = {
        each.replace(".0.", ".*.")
        for each in added
        if ".1." not in each and ".2." not in each and ".3." not in each
    }
    assert kinds == {
        f"{norm}.{part}"
        for norm in (
            "norm",
            *(
                f"layers.*.{each}"
                for each in ("attn.q_norm", "attn.k_norm", "attn_norm", "ff_norm")
            ),
        )
        for part in ("weight", "bias")
    }
    inputs, labels = next(WORKLOADS[name].batches(seed=0))
    outputs = affine(inputs)
    assert torch.equal(outputs, plain(inputs))
    WORKLOADS[name].loss(outputs, labels).backward()
    assert all(
        parameter.grad.any()
        for each, parameter in added.items()
        if not each.endswith("attn.k_norm.bias")
    )


@pytest.mark.parametrize("linear", [True, False])
def test_a_deep_linear_network_is_linear_and_a_relu_one_is_not(linear: bool) -> None:
    workload = WORKLOADS["mlp-linear" if linear else "mlp"]
    model = workload.build(Scale(width=2, depth=2), seed=0)
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == {
        "input.weight": (64, 64),
        **{f"layers.{j}.weight": (64, 64) for j in range(6)},
        "readout.weight": (10, 64),
    }
    x, y = (next(workload.batches(seed=seed))[0] for seed in (0, 1))
    with torch.no_grad():
        error = (model(x + y) - model(x) - model(y)).abs().max() / model(x).abs().max()
    assert (error < 1e-5) == linear
    gain = 1 if linear else 2
    assert model.get_parameter("layers.3.weight").std().item() == pytest.approx(
        math.sqrt(gain / 64), rel=0.05
    )


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_sees_no_later_token(name: str) -> None:
    model = WORKLOADS[name].build(Scale(), seed=0)
    inputs, _ = next(WORKLOADS[name].batches(seed=0))
    changed = inputs.clone()
    changed[:, 40:] = 7
    with torch.no_grad():
        before, after = model(inputs), model(changed)
    assert torch.equal(before[:, :40], after[:, :40])
    assert not torch.equal(before[:, 40:], after[:, 40:])


@pytest.mark.parametrize("name", SCALED)
def test_building_depends_on_the_seed_alone_and_leaves_the_global_generator(name: str) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = WORKLOADS[name].build(Scale(), seed=0)
    assert torch.equal(torch.rand(3), expected)
    torch.rand(100)
    second, other = (WORKLOADS[name].build(Scale(), seed=seed) for seed in (0, 1))
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    assert not torch.equal(
        first.get_parameter("readout.weight"), other.get_parameter("readout.weight")
    )


def test_added_blocks_leave_the_other_tensors_draws_as_they_were() -> None:
    shallow = WORKLOADS["decoder"].build(Scale(), seed=0)
    deep = WORKLOADS["decoder"].build(Scale(depth=4), seed=0)
    assert all(torch.equal(p, deep.get_parameter(name)) for name, p in shallow.named_parameters())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 0),
        ("depth", -1),
        ("init_scale", 0.0),
        ("init_scale", math.inf),
        ("init_scale", math.nan),
    ],
)
def test_a_scale_that_no_model_has_is_refused(field: str, value: float) -> None:
    with pytest.raises(InvalidInput, match=f"^{field} is {value}"):
        Scale(**{field: value})


def test_an_unknown_workload_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(
        NotFound,
        match=r"no workload 'gpt5'; there are resmlp, mlp, mlp-linear, decoder, "
        r"decoder-postnorm, decoder-prenormpostmod",
    ):
        workload_named("gpt5")
