"""Measurements and matches each keep their own steps, also after one that came late."""

from __future__ import annotations

from measured_runs import (
    UNIT_TARGETS,
    fresh,
    probe,
    step,
)
from torch.optim import (
    SGD,
)
from torch.optim.lr_scheduler import (
    LambdaLR,
)

from flerm_client import FLeRM


def test_matching_and_recording_each_keep_their_own_time() -> None:
    model, batches = fresh("resmlp")
    optimizer = SGD(model.parameters(), 1e-2)
    flerm = FLeRM.match(
        model,
        optimizer,
        probe=probe(),
        family="f",
        targets=UNIT_TARGETS,
        start=2,
        every=4,
        record_every=3,
        estimator="exact",
    )
    matched: list[float] = []
    for batch in batches:
        step(model, optimizer, batch)
        matched.append(flerm.multipliers["input.weight"])
    assert flerm.trajectory.steps.tolist() == [2, 5, 6, 8]
    assert [matched.index(m) + 1 for m in dict.fromkeys(matched)] == [1, 2, 6]


def test_a_step_that_was_tried_again_does_not_shift_those_that_follow() -> None:
    model, batches = fresh("resmlp")
    optimizer = SGD(model.parameters(), 1e-2)
    flerm = FLeRM.record(model, optimizer, probe=probe(), family="f", every=3)
    schedule = LambdaLR(optimizer, lambda t: float(t > 1))
    for batch in batches:
        step(model, optimizer, batch)
        schedule.step()
    assert flerm.trajectory.steps.tolist() == [3, 4, 7]
