"""What is not finite is said with its cause: weights, buffers, a step, the probe, or outputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from measured_runs import Trace, fresh, leave, loss_of, probe, same, vectors
from torch import Tensor, nn
from torch.optim import SGD

from flerm_client import FLeRM
from flerm_core.errors import MeasurementError, NotFinite

Poison = Callable[[nn.Module, int, Tensor], Tensor]


def train(
    poison: Poison = lambda model, step, loss: loss,
    *,
    begun: Callable[[nn.Module], None] = lambda model: None,
    kind: str = "resmlp",
    attach: Callable[..., FLeRM] | None = FLeRM.record,
    **options: Any,
) -> tuple[Trace, FLeRM | None, list[str]]:
    """Six steps. poison: gets the model, the step from 1 on, and its loss, and returns the loss."""
    model, batches = fresh(kind)
    begun(model)
    optimizer = SGD(model.parameters(), 1e-2)
    flerm, trace = None, Trace()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if attach is not None:
            given = {"probe": probe(), "family": "f", "warmup": 2, **options}
            flerm = attach(model, optimizer, **given)
        for number, batch in enumerate(batches[:6], start=1):
            optimizer.zero_grad()
            loss = poison(model, number, loss_of(model(batch)))
            loss.backward()
            optimizer.step()
            trace.losses.append(str(loss.item()))  # type: ignore[arg-type]  # NaN equals itself so
        if flerm is not None:
            flerm.close()
    said = [str(each.message) for each in told if issubclass(each.category, UserWarning)]
    return leave(trace, model, optimizer), flerm, said


def spoil(name: str, value: float = torch.nan) -> Callable[[nn.Module], None]:
    def run(model: nn.Module) -> None:
        model.state_dict()[name].view(-1)[0] = value

    return run


def at(step: int, factor: float) -> Poison:
    return lambda model, number, loss: loss * factor if number == step else loss


ALL = "input.weight (128 of 128 values), input.bias (16 of 16 values), blocks.0.weight"


@pytest.mark.parametrize(
    ("step", "factor", "rows", "sentence"),
    [
        (3, torch.nan, [1], f"step 3 was not measured: this step has made weights of the model not "
                            f"finite: {ALL}"),
        (2, torch.inf, [1], f"step 3 was not measured: weights of the model are not finite: {ALL}"),
        (1, torch.nan, [], f"step 1 was not measured: this step has made weights of the model not "
                           f"finite: {ALL}"),
    ],
)  # fmt: skip
def test_a_run_that_diverges_says_which_weights_and_since_when(
    step: int, factor: float, rows: list[int], sentence: str
) -> None:
    plain, _, _ = train(at(step, factor), attach=None)
    trace, flerm, said = train(at(step, factor), every=2)
    assert flerm is not None
    assert str(trace) == str(plain)
    assert flerm.trajectory.steps.tolist() == rows
    assert said[0].startswith(sentence)
    assert (" (all were finite after step 1). The run counts as diverged" in said[0]) == bool(rows)
    assert said[1:] == ([] if rows else ["this run has measured nothing: every measurement failed"])
    assert flerm._session.run_log.diverged


def test_a_run_that_goes_back_to_finite_weights_is_measured_again() -> None:
    kept: dict[str, Tensor] = {}

    def roll_back(model: nn.Module, step: int, loss: Tensor) -> Tensor:
        if step == 1:
            kept.update({name: value.clone() for name, value in model.state_dict().items()})
        if step == 4:
            model.load_state_dict(kept)
            return loss_of(model(torch.ones(12, 8)))
        return at(2, torch.nan)(model, step, loss)

    _, flerm, said = train(roll_back, every=1)
    assert flerm is not None
    assert flerm.trajectory.steps.tolist() == [1, 4, 5, 6]
    assert len(said) == 1 and said[0].startswith("step 2 was not measured: this step has made")

    unit = dict.fromkeys(flerm.multipliers, 1.0)
    _, flerm, said = train(roll_back, attach=FLeRM.match, targets=unit, start=2)
    assert flerm is not None
    assert "goes on at the multipliers that it has; nothing is measured until" in said[0]
    assert [step for step in flerm.trajectory.steps.tolist() if step > 2] == [4]
    assert all(m != 1.0 for m in flerm.multipliers.values())


@pytest.mark.parametrize(
    ("kind", "name", "value", "sentence"),
    [
        ("resmlp", "readout.bias", torch.inf, "weights of the model are not finite: readout.bias "
                                              "(1 of 5 values)"),
        ("convnet", "norm.running_mean", torch.nan, "buffers of the model hold NaN: "
                                                    "norm.running_mean (1 of 6 values)"),
    ],
)  # fmt: skip
def test_what_is_not_finite_when_a_run_begins_is_named(
    kind: str, name: str, value: float, sentence: str
) -> None:
    def begun(model: nn.Module) -> None:
        spoil(name, value)(model)
        model.eval()

    options: dict[str, Any] = {"kind": kind, "begun": begun}
    if kind == "convnet":
        options["probe"] = [torch.ones(4, 2, 6, 6)]
    _, _, said = train(**options, every=1)
    assert said[0] == f"nothing could be measured now: {sentence}"
    assert said[1].startswith(f"step 1 was not measured: {sentence}. The run counts as diverged")
    assert len(said) == 3
    names = [name for name, _ in fresh(kind)[0].named_parameters()]
    with pytest.raises(NotFinite, match=sentence.partition(" (")[0]):
        train(**options, attach=FLeRM.match, targets=dict.fromkeys(names, 1.0))


@pytest.mark.parametrize(
    "estimator", ["example", "kronecker", pytest.param("exact", marks=pytest.mark.slow)]
)
def test_a_probe_batch_with_nan_fails_its_measurements_and_is_no_divergence(estimator: str) -> None:
    batches = [vectors() for _ in range(4)]
    batches[1][3] = torch.nan
    options = {"probe": batches, "estimator": estimator, "warmup": 1}
    plain, _, _ = train(attach=None)
    trace, flerm, said = train(**options, every=1)
    assert flerm is not None
    assert same(trace, plain)
    assert flerm.trajectory.steps.tolist() == [1, 3, 4, 5]
    assert not flerm._session.run_log.diverged
    reason = "a batch of the probe holds NaN: tensor 1 (8 of 96 values); leave such batches out"
    assert [each.partition(" of probe=")[0] for each in said] == [
        f"step {step} was not measured: {reason}" for step in (2, 6)
    ]
    unit = dict.fromkeys(flerm.multipliers, 1.0)
    with pytest.raises(MeasurementError, match="a batch of the probe holds NaN"):
        train(**options | {"warmup": 2}, attach=FLeRM.match, targets=unit)


def test_a_matched_run_keeps_its_rates_where_a_later_measurement_fails() -> None:
    batches = [vectors() for _ in range(8)]
    batches[2][3] = torch.nan
    unit = {name: 1.0 for name, _ in fresh("resmlp")[0].named_parameters()}
    options = {"probe": batches, "attach": FLeRM.match, "targets": unit}
    _, once, _ = train(**options | {"probe": batches[:2]})
    _, flerm, said = train(**options, every=2, samples=1)
    assert once is not None and flerm is not None
    assert len(said) == 1 and said[0].startswith("step 3 was not measured: a batch of the probe ho")
    assert "The run goes on at the multipliers that it has, and the next measurement" in said[0]
    assert flerm.trajectory.steps.tolist() == [1, 5]
    first = flerm._session.run_log.rows[0].vectors["multiplier"]
    found = dict(zip(flerm.trajectory.names, first.tolist(), strict=False))
    assert once.multipliers == pytest.approx({name: found[name] for name in unit}, rel=1e-6)


def test_outputs_that_overflow_are_named_with_the_module_and_the_examples() -> None:
    class Squares(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            large = x.abs().amax(1, keepdim=True) > 1e3
            return x + torch.where(large, (x.detach() * 1e30) ** 2, 0.0)

    def begun(model: nn.Module) -> None:
        model.input = nn.Sequential(nn.Linear(8, 16), Squares())

    batch = vectors()
    batch[5] = 1e4
    _, _, said = train(begun=begun, probe=[batch], every=1)
    assert said[0].startswith(
        "nothing could be measured now: 5 of 60 outputs of a probe batch are not finite for its "
        "examples 5 (dimension 0), first in input.1 (Squares), although the weights, the buffers "
        "and the batch are: "
    )


def test_losses_that_are_not_finite_are_given_as_the_reason_of_a_diverged_run() -> None:
    model, batches = fresh("resmlp")
    optimizer = SGD(model.parameters(), 1e-2)
    flerm = FLeRM.record(model, optimizer, probe=probe(), family="f", every=1)
    for number, batch in enumerate(batches[:3]):
        loss = loss_of(model(batch))
        flerm.log(loss=torch.inf if number == 1 else loss)
        loss.backward()
        optimizer.step()
    with pytest.warns(UserWarning, match="counts as diverged: 1 of the last 3 losses that were lo"):
        flerm.close()
