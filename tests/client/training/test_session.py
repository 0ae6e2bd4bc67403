"""A session wraps and measures the steps of a run; the user's loop stays as it is."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from measured_runs import (
    UNIT_TARGETS,
    Trace,
    backward,
    fresh,
    leave,
    loss_of,
    probe,
    probe_stream,
    same,
    step,
    vectors,
)
from torch import nn
from torch.optim import (
    SGD,
    Adam,
    AdamW,
    Muon,
)
from torch.optim.lr_scheduler import (
    LambdaLR,
)

from flerm_client import FLeRM
from flerm_core.errors import InvalidInput


def test_a_step_at_rate_zero_is_not_measured_but_the_next_one_is() -> None:
    model, batches = fresh("resmlp")
    optimizer = SGD(model.parameters(), 1e-2)
    flerm = FLeRM.record(model, optimizer, probe=probe(), family="f", every=100)
    schedule = LambdaLR(optimizer, lambda t: min(1.0, t / 2))
    for batch in batches[:3]:
        step(model, optimizer, batch)
        schedule.step()
    assert flerm.trajectory.steps.tolist() == [2]


def test_two_optimizers_on_one_model() -> None:
    model, batches = fresh("resmlp")
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors_ = [p for p in model.parameters() if p.ndim == 1]
    both = [SGD(matrices, 1e-2), Adam(vectors_, 1e-3)]
    flerm = FLeRM.match(
        model, both, probe=probe(), family="f", lr=1e-2, targets=UNIT_TARGETS, estimator="exact"
    )
    for each in both:
        each.zero_grad()
    loss_of(model(batches[0])).backward()
    for each in both:
        each.step()
    assert flerm.steps == 1
    assert flerm.learning_rates()["input.weight"] == pytest.approx(
        1e-2 * flerm.multipliers["input.weight"]
    )
    assert flerm.learning_rates()["input.bias"] == pytest.approx(
        1e-3 * flerm.multipliers["input.bias"]
    )


def test_muon_beside_adamw_leaves_no_trace() -> None:
    def train(record: bool) -> Trace:
        model, batches = fresh("resmlp")
        both = [
            Muon([p for p in model.parameters() if p.ndim == 2], 1e-2),
            AdamW([p for p in model.parameters() if p.ndim == 1], 1e-3),
        ]
        if record:
            FLeRM.record(model, both, probe=probe(), family="f", lr=1e-2, every=3)
        trace = Trace()
        for batch in batches:
            trace.losses.append(backward(model, batch))
            for each in both:
                each.step()
        return leave(trace, model, *both)

    assert same(train(False), train(True))


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_gradscaler_skips_is_measured_at_the_next(fused: bool) -> None:
    def train(record: bool) -> tuple[Trace, list[int]]:
        model, batches = fresh("resmlp")
        optimizer = Adam(model.parameters(), 1e-2, fused=fused)
        flerm = (
            FLeRM.record(model, optimizer, probe=probe(), family="f", every=100) if record else None
        )
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120, growth_interval=100)
        trace = Trace()
        for batch in batches:
            model.zero_grad()
            loss = loss_of(model(batch))
            scaler.scale(loss).backward()
            if len(trace.losses) == 0:
                next(model.parameters()).grad[0] = torch.inf  # the first step overflows
            scaler.step(optimizer)
            scaler.update()
            trace.losses.append(loss.item())
        return leave(trace, model, optimizer), flerm.trajectory.steps.tolist() if flerm else []

    plain, _ = train(False)
    recorded, steps = train(True)
    assert same(plain, recorded)
    assert len(steps) == 1


@pytest.mark.parametrize(
    ("first", "second"), [("match", "match"), ("match", "record"), ("record", "match")]
)
def test_a_second_flerm_is_refused_where_either_matches(first: str, second: str) -> None:
    model, batches = fresh("resmlp")
    optimizer = SGD(model.parameters(), 1e-2)

    def begin(kind: str) -> FLeRM:
        options: dict[str, Any] = {"targets": UNIT_TARGETS} if kind == "match" else {}
        made: FLeRM = getattr(FLeRM, kind)(
            model, optimizer, probe=probe_stream(), family="f", **options
        )
        return made

    flerm = begin(first)
    with pytest.raises(
        InvalidInput, match=r"optimizer is at work in another FLeRM, .* close\(\) that one first"
    ):
        begin(second)
    flerm.close()
    again = begin(second)
    step(model, optimizer, batches[0])
    assert again.measurements == 1


def test_a_notebook_shows_what_a_run_is_and_how_far_it_is() -> None:
    model, batches = fresh("resmlp")
    optimizer = SGD(model.parameters(), 1e-2)
    flerm = FLeRM.record(model, optimizer, probe=probe_stream(), family="team/net", every=2)
    for inputs in batches[:2]:
        step(model, optimizer, inputs)
    shown = "'team/net' at learning rate 0.01; steps: 2, measurements: 1>"
    assert repr(flerm) == f"<FLeRM records {shown}"
    flerm.close()
    flerm = FLeRM.match(
        model, optimizer, probe=probe_stream(), family="team/net", targets=UNIT_TARGETS
    )
    step(model, optimizer, batches[2])
    assert repr(flerm) == f"<FLeRM matches {shown.replace('2', '1')}"


def test_two_recordings_of_one_run_read_the_same() -> None:
    model, batches = fresh("resmlp")
    optimizer = SGD(model.parameters(), 1e-2)
    first, second = (
        FLeRM.record(model, optimizer, probe=probe_stream(), family="f") for _ in range(2)
    )
    step(model, optimizer, batches[0])
    assert first.fslr == second.fslr


def test_a_run_that_ctrl_c_stops_in_mid_measurement_goes_on_unchanged() -> None:
    def train(interrupt: bool) -> tuple[dict[str, Any], FLeRM]:
        model, batches = fresh("resmlp")
        optimizer = Adam(model.parameters(), 1e-2)
        calls = itertools.count()

        def output(model: nn.Module, batch: Any) -> Any:
            if interrupt and next(calls) == 2:
                raise KeyboardInterrupt
            return model(batch)

        flerm = FLeRM.record(
            model, optimizer, probe=probe_stream(), family="f", output=output, every=3
        )
        for batch in batches:
            try:
                step(model, optimizer, batch)
            except KeyboardInterrupt:
                assert not flerm.measuring
        return model.state_dict(), flerm

    plain, _ = train(False)
    interrupted, flerm = train(True)
    assert all(torch.equal(plain[name], interrupted[name]) for name in plain)
    assert flerm.trajectory.steps.tolist() == [2, 4, 7]


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_weights_are_measured_by_the_update_that_was_made(dtype: torch.dtype) -> None:
    """The outputs see what the weights' own rounding leaves of the update; the rest is float32."""
    model, batches = fresh("resmlp")
    model.to(dtype)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = SGD(model.parameters(), 1.0)
    flerm = FLeRM.record(
        model, optimizer, probe=[b.to(dtype) for b in probe()], family="f", warmup=32
    )
    step(model, optimizer, batches[0].to(dtype))
    high, _ = fresh("resmlp")
    for name, parameter in high.named_parameters():
        parameter.data.copy_(before[name].float())
        parameter.grad = before[name].float() - model.get_parameter(name).detach().float()
    reference = FLeRM.record(
        high, (plain := SGD(high.parameters(), 1.0)), probe=probe(), family="f", estimator="exact"
    )
    plain.step()
    errors = [flerm.fslr[name] / value - 1 for name, value in reference.fslr.items()]
    assert max(abs(e) for e in errors) < 0.25
    assert abs(sum(errors) / len(errors)) < 0.05


def test_a_diverged_run_keeps_its_last_finite_measurement_and_its_own_course() -> None:
    model, batches = fresh("resmlp")
    optimizer = SGD(model.parameters(), 1e-2)
    flerm = FLeRM.record(model, optimizer, probe=probe(), family="f", every=1)
    step(model, optimizer, batches[0])
    last = flerm.fslr
    optimizer.zero_grad()
    loss_of(model(batches[1] * torch.nan)).backward()
    optimizer.step()
    assert flerm.fslr == last
    assert flerm.trajectory.steps.tolist() == [1]
    assert all(p.isnan().all() for p in model.parameters())
