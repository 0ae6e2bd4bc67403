"""Initial weights depend on the seed and the tensor's name only."""

from __future__ import annotations

import torch

from flerm_experiments.workloads import WORKLOADS, Scale


def test_added_blocks_leave_the_other_tensors_draws_as_they_were() -> None:
    shallow = WORKLOADS["decoder"].build(Scale(), seed=0)
    deep = WORKLOADS["decoder"].build(Scale(depth=4), seed=0)
    assert all(torch.equal(p, deep.get_parameter(name)) for name, p in shallow.named_parameters())
