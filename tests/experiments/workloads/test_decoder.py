"""Decoders: readable names, initialisation of Appendix A.2, causality, and norms that hide a
scale."""

from __future__ import annotations

import math

import pytest
import torch

from flerm_experiments.workloads import WORKLOADS, Scale

DECODERS = ["decoder", "decoder-postnorm", "decoder-prenormpostmod"]


def initial_output(name: str, scale: Scale, seed: int = 0) -> torch.Tensor:
    workload = WORKLOADS[name]
    inputs, _ = next(workload.batches(seed=0))
    with torch.no_grad():
        return workload.build(scale, seed=seed)(inputs)


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
