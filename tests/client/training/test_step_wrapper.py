"""A wrapped step runs once, in the user's hooks; copies of model and optimiser are plain ones."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from measured_runs import (
    UNIT_TARGETS,
    Trace,
    backward,
    fresh,
    leave,
    probe,
    probe_stream,
    same,
    step,
    trained,
)
from torch import nn
from torch.optim import (
    SGD,
    Adam,
)
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.optim.swa_utils import AveragedModel

from flerm_client import FLeRM


@pytest.mark.parametrize("copied", [copy.deepcopy, AveragedModel])
def test_a_copy_of_the_model_is_a_plain_model(copied: Any) -> None:
    model, batches = fresh("resmlp")
    optimizer = Adam(model.parameters(), 1e-2)
    flerm = FLeRM.record(model, optimizer, probe=probe_stream(), family="f", every=1)
    twin = copied(model)
    assert torch.equal(twin(batches[0]), model(batches[0]))
    step(model, optimizer, batches[0])
    assert flerm.steps == flerm.measurements == 1


def test_the_model_and_its_optimizer_can_be_pickled_and_work_alone_afterwards() -> None:
    model, batches = fresh("resmlp")
    optimizer = Adam(model.parameters(), 1e-2)
    FLeRM.match(model, optimizer, probe=probe_stream(), family="f", targets=UNIT_TARGETS)
    step(model, optimizer, batches[0])
    file = io.BytesIO()
    torch.save((model, optimizer), file)
    file.seek(0)
    twin, its = torch.load(file, weights_only=False)
    step(twin, its, batches[1])
    assert [group["lr"] for group in its.param_groups] == [1e-2]
    assert its.step.__func__ is Adam.step


def test_a_closure_runs_once_and_is_measured() -> None:
    model, batches = fresh("resmlp")
    optimizer = SGD(model.parameters(), 1e-2)
    flerm = FLeRM.match(
        model, optimizer, probe=probe(), family="f", targets=UNIT_TARGETS, estimator="exact"
    )
    calls = []

    def closure() -> float:
        calls.append(1)
        return backward(model, batches[0])

    loss = optimizer.step(closure)
    assert isinstance(loss, float) and calls == [1]
    assert flerm.steps == 1
    assert all(
        m * flerm.fslr[n] == pytest.approx(1.0, rel=0.03) for n, m in flerm.multipliers.items()
    )


def scheduled(
    by: str, flerm: Callable[[nn.Module, torch.optim.Optimizer], FLeRM]
) -> tuple[FLeRM, Trace]:
    """A run whose rate and momentum fall at each step, set by hand or by a hook on the step."""
    model, batches = fresh("resmlp")
    optimizer = SGD(model.parameters(), 1e-2, momentum=0.9)
    made = flerm(model, optimizer)

    def fall(*_: Any) -> None:
        (group,) = optimizer.param_groups
        group["lr"], group["momentum"] = group["lr"] * 0.8, group["momentum"] * 0.9

    hooks = {
        "pre-hook": optimizer.register_step_pre_hook,
        "global pre-hook": register_optimizer_step_pre_hook,
        "post-hook": optimizer.register_step_post_hook,
        "global post-hook": register_optimizer_step_post_hook,
    }
    handle = hooks[by](fall) if by in hooks else None
    trace = Trace()
    for batch in batches:
        if by == "before":
            fall()
        trace.losses += trained(model, optimizer, [batch])
        if by == "after":
            fall()
    if handle is not None:
        handle.remove()
    return made, leave(trace, model, optimizer)


@pytest.mark.parametrize(
    ("hook", "by_hand"),
    [
        ("pre-hook", "before"),
        ("global pre-hook", "before"),
        ("post-hook", "after"),
        ("global post-hook", "after"),
    ],
)
@pytest.mark.parametrize("matched", [True, False])
def test_hooks_on_a_step_see_and_set_the_users_own_groups(
    matched: bool, hook: str, by_hand: str
) -> None:
    def attach(model: nn.Module, optimizer: torch.optim.Optimizer) -> FLeRM:
        options: dict[str, Any] = {
            "probe": [torch.ones(4, 8)],
            "family": "f",
            "every": 2,
            "estimator": "exact",
        }
        if not matched:
            return FLeRM.record(model, optimizer, **options)
        return FLeRM.match(
            model,
            optimizer,
            targets={n: 1.0 for n, _ in model.named_parameters()},
            record_every=2,
            **options,
        )

    (hooked, left), (plain, expected) = scheduled(hook, attach), scheduled(by_hand, attach)
    assert same(left, expected)
    assert hooked.trajectory == plain.trajectory
    assert hooked.multipliers == plain.multipliers


def test_closing_takes_everything_off_the_optimizer() -> None:
    model, _ = fresh("resmlp")
    optimizer = Adam(model.parameters(), 1e-2)
    before = dict(vars(optimizer))
    FLeRM.record(model, optimizer, probe=[torch.randn(4, 8)], family="f").close()
    assert dict(vars(optimizer)) == before
    assert not model._forward_pre_hooks
