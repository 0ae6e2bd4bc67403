"""The paper's ablations: equal FSLRs add up to one over the tensors of the model that they belong
to."""

from __future__ import annotations

import math

import pytest

from flerm_experiments.workloads import Scale
from flerm_experiments.workloads.train_loop import Job, train


@pytest.mark.parametrize("targets", ["equal", "equal-throughout"])
def test_equal_targets_sum_to_one_over_the_tensors_of_the_model_they_belong_to(
    targets: str,
) -> None:
    fields = {"workload": "resmlp", "lr": 0.01, "steps": 2, "mode": "match", "targets": targets}
    base = train(Job(**fields))  # type: ignore[arg-type]
    assert list(base.targets.values()) == pytest.approx([1 / 12] * 12)
    deep = train(Job(**fields, scale=Scale(depth=2)))  # type: ignore[arg-type]
    assert math.fsum(deep.targets.values()) == pytest.approx(1)
    # Appendix C.3 shares the FSLRs of blocks out and leaves those of input and readout; C.4 gives
    # all tensors the same.
    share = {"equal": 1 / 24, "equal-throughout": 1 / 20}[targets]
    assert deep.targets["layers.3.weight"] == pytest.approx(share)
    assert deep.targets["readout.weight"] == pytest.approx(
        {"equal": 1 / 12, "equal-throughout": 1 / 20}[targets]
    )
