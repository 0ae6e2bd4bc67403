"""Muon in float32 makes the updates of torch's Muon, but for the rounding of bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import Muon

from flerm_experiments.workloads.muon import Float32Muon


@pytest.mark.parametrize("shape", [(8, 24), (24, 8)])
def test_three_steps_are_those_of_torchs_muon(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    begin = torch.randn(shape, generator=generator)
    gradients = torch.randn(3, *shape, generator=generator)
    moved = []
    for kind in (Muon, Float32Muon):
        weight = nn.Parameter(begin.clone())
        optimizer = kind([weight], 0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        moved.append(weight.detach() - begin)
    assert (moved[1] - moved[0]).norm() <= 0.02 * moved[0].norm()
