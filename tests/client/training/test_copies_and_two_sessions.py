"""Copies of what is measured carry nothing of the run; two FLeRMs on one optimiser never mistake each other's rates."""

from __future__ import annotations

import copy
import io
import itertools
from typing import Any

import pytest
import torch
from measured_runs import ResMLP, fresh, loss_of, vectors
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.swa_utils import AveragedModel

from flerm_client import FLeRM
from flerm_core.errors import InvalidInput

ONES = dict.fromkeys(dict(ResMLP().named_parameters()), 1.0)


def endless() -> Any:
    generator = torch.Generator().manual_seed(11)
    return (torch.randn(32, 8, generator=generator) for _ in itertools.count())


def step(model: nn.Module, *optimizers: Optimizer, batch: torch.Tensor) -> None:
    model.zero_grad()
    loss_of(model(batch)).backward()
    for each in optimizers:
        each.step()


@pytest.mark.parametrize("copied", [copy.deepcopy, AveragedModel])
def test_a_copy_of_the_model_is_a_plain_model(copied: Any) -> None:
    model, batches = fresh("resmlp")
    optimizer = Adam(model.parameters(), 1e-2)
    flerm = FLeRM.record(model, optimizer, probe=endless(), family="f", every=1)
    twin = copied(model)
    assert torch.equal(twin(batches[0]), model(batches[0]))
    step(model, optimizer, batch=batches[0])
    assert flerm.steps == flerm.measurements == 1


def test_the_model_and_its_optimizer_can_be_pickled_and_work_alone_afterwards() -> None:
    model, batches = fresh("resmlp")
    optimizer = Adam(model.parameters(), 1e-2)
    FLeRM.match(model, optimizer, probe=endless(), family="f", targets=ONES)
    step(model, optimizer, batch=batches[0])
    file = io.BytesIO()
    torch.save((model, optimizer), file)
    file.seek(0)
    twin, its = torch.load(file, weights_only=False)
    step(twin, its, batch=batches[1])
    assert [group["lr"] for group in its.param_groups] == [1e-2]
    assert its.step.__func__ is Adam.step


@pytest.mark.parametrize(
    ("first", "second"), [("match", "match"), ("match", "record"), ("record", "match")]
)
def test_a_second_flerm_is_refused_where_either_matches(first: str, second: str) -> None:
    model, batches = fresh("resmlp")
    optimizer = SGD(model.parameters(), 1e-2)

    def begin(kind: str) -> FLeRM:
        options: dict[str, Any] = {"targets": ONES} if kind == "match" else {}
        made: FLeRM = getattr(FLeRM, kind)(model, optimizer, probe=endless(), family="f", **options)
        return made

    flerm = begin(first)
    with pytest.raises(
        InvalidInput, match=r"optimizer is at work in another FLeRM, .* close\(\) that one first"
    ):
        begin(second)
    flerm.close()
    again = begin(second)
    step(model, optimizer, batch=batches[0])
    assert again.measurements == 1


def test_two_recordings_of_one_run_read_the_same() -> None:
    model, batches = fresh("resmlp")
    optimizer = SGD(model.parameters(), 1e-2)
    first, second = (FLeRM.record(model, optimizer, probe=endless(), family="f") for _ in range(2))
    step(model, optimizer, batch=batches[0])
    assert first.fslr == second.fslr


def test_a_run_that_ctrl_c_stops_in_mid_measurement_goes_on_untouched() -> None:
    def train(interrupt: bool) -> tuple[dict[str, Any], FLeRM]:
        model, batches = fresh("resmlp")
        optimizer = Adam(model.parameters(), 1e-2)
        calls = itertools.count()

        def output(model: nn.Module, batch: Any) -> Any:
            if interrupt and next(calls) == 2:
                raise KeyboardInterrupt
            return model(batch)

        flerm = FLeRM.record(model, optimizer, probe=endless(), family="f", output=output, every=3)
        for batch in batches:
            try:
                step(model, optimizer, batch=batch)
            except KeyboardInterrupt:
                assert not flerm.measuring
        return model.state_dict(), flerm

    plain, _ = train(False)
    interrupted, flerm = train(True)
    assert all(torch.equal(plain[name], interrupted[name]) for name in plain)
    assert flerm.trajectory.steps.tolist() == [2, 4, 7]


class Sharpness(Optimizer):
    """As sharpness-aware minimisers are built: around another optimiser whose groups are theirs too."""

    def __init__(self, parameters: Any, **options: Any) -> None:
        super().__init__(parameters, options)
        self.base_optimizer = SGD(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.base_optimizer.step()


def test_multipliers_reach_the_optimizer_inside_another() -> None:
    rates = []
    for kind in (SGD, Sharpness):
        model, batches = fresh("resmlp")
        optimizer = kind(model.parameters(), lr=1e-2)
        FLeRM.match(model, optimizer, probe=endless(), family="f", targets=ONES)
        for batch in batches:
            step(model, optimizer, batch=batch)
        rates.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*rates)


def test_an_optimizer_that_steps_again_before_the_other_is_measured_by_its_last_step() -> None:
    def last_of(several: int) -> dict[str, float]:
        model, _ = fresh("resmlp")
        first, second = (
            SGD(model.blocks.parameters(), 0.1),
            SGD([*model.input.parameters(), *model.readout.parameters()], 0.1),
        )
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        for _ in range(several - 1):
            first.step()
        with torch.no_grad():  # where the last step began in both cases
            for p in model.blocks.parameters():
                p.zero_()
        flerm = FLeRM.record(
            model,
            [first, second],
            probe=[vectors().zero_()],
            family="f",
            every=1,
            estimator="exact",
        )
        for _ in range(several):
            with torch.no_grad():
                for p in model.blocks.parameters():
                    p.zero_()
            first.step()
        second.step()
        assert flerm.steps == 1
        return flerm.fslr

    assert last_of(3) == last_of(1)
