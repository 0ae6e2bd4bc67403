"""The residual MLP: readable names and the initialisation of Appendix A.1."""

from __future__ import annotations

import math

import pytest

from flerm_experiments.workloads import WORKLOADS, Scale


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
