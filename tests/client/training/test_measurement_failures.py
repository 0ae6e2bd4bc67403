"""A measurement that fails never ends a recording run; nothing stays unmeasured in silence."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from measured_runs import Trace, fresh, leave, loss_of, probe, same, step, vectors
from torch import Tensor, nn
from torch.optim import SGD, Adam

from flerm_client import FLeRM
from flerm_core.errors import MeasurementError

FAILS = r"step 1 was not measured: .*The run goes on as without FLeRM"


def in_readout(model: nn.Module, flerm: list[FLeRM]) -> None:
    def refuse(*_: Any) -> None:
        if flerm and flerm[0].measuring:
            raise RuntimeError("no kernel for this\nand a long story")

    model.readout.register_forward_pre_hook(refuse)


def train(
    record: bool,
    prepare: Callable[[nn.Module, list[FLeRM]], None] = lambda model, flerm: None,
    **options: Any,
) -> tuple[Trace, FLeRM | None]:
    model, batches = fresh("resmlp")
    optimizer = Adam(model.parameters(), 1e-2)
    made: list[FLeRM] = []
    prepare(model, made)
    if record:
        given: dict[str, Any] = {"probe": probe(), "family": "f", "every": 1, **options}
        made.append(FLeRM.record(model, optimizer, **given))
    trace = Trace(losses=[step(model, optimizer, batch) for batch in batches[:5]])
    return leave(trace, model, optimizer), made[0] if made else None


def raises(model: nn.Module, batch: Tensor) -> Tensor:
    raise MemoryError


def out_of_batches() -> Any:
    yield from ()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"output": raises}, "MemoryError.*smaller probe batches"),
        ({"output": lambda model, batch: "text"}, "step 1 was not measured"),
        ({"probe": [torch.ones(4, 3)]}, r"in input \(Linear\).*estimator='kronecker'"),
        ({"probe": out_of_batches()}, "probe has no batches"),
        ({"estimator": "exact", "output": lambda model, batch: model(batch)[:0]}, "empty"),
    ],
)
def test_whatever_a_measurement_raises_the_run_goes_on_unchanged(
    options: dict[str, Any], says: str
) -> None:
    plain, _ = train(False)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        recorded, flerm = train(True, **options)
    assert same(plain, recorded)
    assert flerm is not None and flerm.measurements == 0
    ours = [str(each.message) for each in told if "FLeRM" in str(each.message)]
    assert len(ours) == 2, "the first failure, and the end of measuring"

    assert re.search(says, ours[0]), ours[0]
    assert "measuring has stopped at step 3" in ours[1]


def test_the_module_that_raised_is_named() -> None:
    with pytest.warns(UserWarning, match=FAILS) as told:
        train(True, in_readout)
    assert "RuntimeError: no kernel for this;" in str(told[0].message)


def test_a_failure_that_passes_leaves_the_rest_of_the_run_measured() -> None:
    calls: list[int] = []

    def fails_once(model: nn.Module, batch: Tensor) -> Any:
        calls.append(1)
        if len(calls) == 3:  # the first two calls look at the batch when the run begins
            raise RuntimeError("once")
        return model(batch)

    with pytest.warns(UserWarning, match="in a row measuring stops"):
        _, flerm = train(True, output=fails_once, estimator="kronecker")
    assert flerm is not None and flerm.trajectory.steps.tolist() == [2, 3, 4, 5]


def test_a_matching_run_raises_what_a_recording_run_says() -> None:
    model, _ = fresh("resmlp")
    optimizer = Adam(model.parameters(), 1e-2)
    targets = {name: 1.0 for name, _ in model.named_parameters()}
    with pytest.raises(MeasurementError, match="RuntimeError: mat1 and mat2"):
        FLeRM.match(model, optimizer, probe=[torch.ones(4, 3)], family="f", targets=targets)


def stepping_in_backward(spare: bool) -> FLeRM:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    if spare:
        model.register_parameter("spare", nn.Parameter(torch.ones(3)))
    optimizers = {p: SGD([p], 1e-2) for p in model.parameters()}
    targets = {name: 1.0 for name, _ in model.named_parameters()}
    flerm = FLeRM.match(
        model, list(optimizers.values()), probe=probe(), family="f", targets=targets
    )

    def step_now(parameter: Tensor) -> None:
        optimizers[parameter].step()  # type: ignore[index]
        optimizers[parameter].zero_grad()  # type: ignore[index]

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step_now)
    for _ in range(5):
        model(vectors()).square().mean().backward()
    return flerm


def test_optimizers_that_step_in_backward_are_matched() -> None:
    flerm = stepping_in_backward(spare=False)
    assert flerm.steps == 5 and flerm.measurements >= 1
    for name, multiplier in flerm.multipliers.items():
        assert multiplier * flerm.matched_fslr[name] == pytest.approx(1.0, rel=0.03)


def test_an_optimizer_that_never_steps_is_named_after_the_first_steps_and_at_the_end() -> None:
    with pytest.warns(UserWarning, match=r"number 1 \(SGD\) has made no step .*Tensors: spare"):
        flerm = stepping_in_backward(spare=True)
    with pytest.warns(UserWarning, match="measured nothing: no step was counted, because one of"):
        flerm.close()


def test_a_run_that_measured_nothing_says_so_at_its_end() -> None:
    model, batches = fresh("resmlp")
    given, other = (SGD(model.parameters(), 1e-2) for _ in range(2))
    flerm = FLeRM.record(model, given, probe=probe(), family="f")
    step(model, other, batches[0])
    with pytest.warns(UserWarning, match="measured nothing: no step was made through the optim"):
        flerm.close()


def test_tensors_that_change_without_an_fslr_are_named() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.aside = nn.Linear(8, 2), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.used(x), self.aside(x)

    model = Beside()
    optimizer = Adam(model.parameters(), 1e-2)
    FLeRM.record(model, optimizer, probe=probe(), family="f", every=1, output=lambda m, b: m(b)[0])
    with pytest.warns(UserWarning, match=r"2 tensors that have no FSLR.*aside.weight, aside.bias"):
        for _ in range(2):
            optimizer.zero_grad()
            sum(each.square().mean() for each in model(vectors())).backward()
            optimizer.step()


@pytest.mark.slow
def test_a_step_that_is_compiled_after_the_call_says_that_it_is_to_be_compiled_before() -> None:
    def run(first: bool) -> list[int]:
        model, batches = fresh("resmlp")
        optimizer = Adam(model.parameters(), 1e-2, foreach=True)
        if first:
            optimizer.step = torch.compile(optimizer.step, backend="eager")  # type: ignore[method-assign]
        flerm = FLeRM.record(model, optimizer, probe=probe(), family="f", every=1)
        step_now = optimizer.step if first else torch.compile(optimizer.step, backend="eager")
        for batch in batches[:2]:
            loss_of(model(batch)).backward()
            step_now()
        return list(flerm.trajectory.steps)

    assert run(first=True) == [1, 2]
    with pytest.warns(UserWarning, match="compile the step first") as told:
        assert run(first=False) == []
    assert any(re.match(FAILS, str(each.message)) for each in told)
