"""What cannot be measured is said before weights move, and looking leaves no trace."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from measured_runs import fresh, probe, step
from torch import Tensor, nn
from torch.optim import Adam

from flerm_client import FLeRM
from flerm_core.errors import FlermError, InvalidInput


class NoDerivative(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keeps nothing."""


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no tensor": ({"output": lambda model, batch: "text"}, "0 floating-point tensors"),
    "not finite": (
        {"output": lambda model, batch: model(batch) / 0},
        "60 of 60 outputs of a probe batch are not finite",
    ),
    "a batch that does not fit": ({"probe": [torch.ones(4, 3)]}, r"in input \(Linear\).*probe="),
    "no derivative": (
        {"output": lambda model, batch: NoDerivative.apply(model(batch))},
        "a batch of the probe cannot be measured: NotImplementedError",
    ),
    "cut off": ({"output": lambda model, batch: model(batch).detach()}, "do not depend on the wei"),
    "no batches": ({"probe": []}, "probe has no batches"),
    "out of memory": ({"output": lambda model, batch: exec("raise MemoryError")}, "smaller probe"),
}


def targets(model: nn.Module) -> dict[str, float]:
    return {name: 1.0 for name, _ in model.named_parameters()}


@pytest.mark.parametrize(("options", "says"), WRONG.values(), ids=WRONG.keys())
def test_matching_that_cannot_be_done_is_said_at_the_call(
    options: dict[str, Any], says: str
) -> None:
    model, _ = fresh("resmlp")
    optimizer = Adam(model.parameters(), 1e-2)
    given = {"probe": [torch.ones(12, 8)], "family": "f", "targets": targets(model), **options}
    with pytest.raises(FlermError, match=says):
        FLeRM.match(model, optimizer, **given)
    assert "step" not in vars(optimizer)


@pytest.mark.parametrize(("options", "says"), WRONG.values(), ids=WRONG.keys())
def test_a_recording_run_is_warned_and_goes_on(options: dict[str, Any], says: str) -> None:
    model, batches = fresh("resmlp")
    optimizer = Adam(model.parameters(), 1e-2)
    given = {"probe": [torch.ones(12, 8)], "family": "f", **options}
    with pytest.warns(UserWarning, match=says):
        FLeRM.record(model, optimizer, **given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step(model, optimizer, batches[0])


def test_a_model_that_runs_under_autocast_alone_is_ready_at_the_call() -> None:
    model, _ = fresh("resmlp")
    optimizer = Adam(model.parameters(), 1e-2)
    half = [torch.ones(12, 8, dtype=torch.bfloat16)]
    flerm = FLeRM.match(model, optimizer, probe=half, family="f", targets=targets(model))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(half[0]).float().square().mean()
    loss.backward()
    optimizer.step()
    assert flerm.measurements == 1


def test_the_look_takes_no_batch_and_no_random_number_of_the_probe() -> None:
    taken: list[int] = []

    def batches() -> Iterator[Tensor]:
        for number in range(100):
            taken.append(number)
            yield torch.full((4, 8), float(number)) + torch.rand(4, 8)

    model, training = fresh("resmlp")
    seen: list[Tensor] = []

    def output(model: nn.Module, batch: Tensor) -> Tensor:
        seen.append(batch.clone())
        return model(batch)

    before = torch.get_rng_state()
    flerm = FLeRM.record(
        model,
        Adam(model.parameters(), 1e-2),
        probe=batches(),
        family="f",
        warmup=3,
        estimator="kronecker",
        output=output,
    )
    assert taken == [0] and torch.equal(torch.get_rng_state(), before)
    step(model, flerm._session.optimizers[0], training[0])
    assert taken == [0, 1, 2]
    assert [round(float(each[0, 0]) - 0.5) for each in seen] == [0, 0, 0, 1, 2]
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])


def test_gradients_modes_buffers_and_hooks_on_gradients_stay() -> None:
    model, _ = fresh("convnet")
    model.train()
    called: list[int] = []
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
        parameter.register_hook(lambda grad: called.append(1))
        parameter.register_post_accumulate_grad_hook(lambda p: called.append(1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    grads = [p.grad for p in model.parameters()]
    images = [torch.randn(4, 3, 8, 8)]
    FLeRM.record(model, Adam(model.parameters(), 1e-2), probe=images, family="f")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is grad for p, grad in zip(model.parameters(), grads, strict=True))
    assert model.training and not called


def test_a_resume_takes_up_the_batch_that_was_looked_at() -> None:
    """Also where the probe is a generator, which cannot begin anew."""

    def run(resumed: bool, one_shot: bool) -> list[float]:
        model, training = fresh("resmlp")
        optimizer = Adam(model.parameters(), 1e-2)

        def begin() -> FLeRM:
            data = [torch.full((4, 8), float(each)) for each in range(1, 30)]
            given: Any = iter(data) if one_shot else data
            return FLeRM.record(
                model, optimizer, probe=given, family="f", every=1, warmup=2, estimator="kronecker"
            )

        flerm = begin()
        for number, batch in enumerate(training[:4]):
            if resumed and number == 2:
                state = flerm.state_dict()
                flerm.close("interrupted")
                flerm = begin()
                flerm.load_state_dict(state)
            step(model, optimizer, batch)
        return list(flerm.trajectory.values[:, 0])

    for one_shot in (False, True):
        assert run(True, one_shot) == run(False, one_shot)


def test_a_model_without_values_is_refused_by_name() -> None:
    model = nn.Linear(8, 4, device="meta")
    optimizer = Adam(model.parameters(), 1e-2)
    with pytest.raises(InvalidInput, match=r"weight is on the meta device.*to_empty"):
        FLeRM.record(model, optimizer, probe=probe(), family="f")


class Remembering(nn.Module):
    """Adds to its input what a variable of a closure holds, which it then changes."""

    def __init__(self) -> None:
        super().__init__()
        memory = [0.0]

        def add(x: Tensor) -> Tensor:
            memory[0] = 0.5 * memory[0] + 0.5 * float(x.detach().mean())
            return x + memory[0]

        self.add = add

    def forward(self, x: Tensor) -> Tensor:
        return self.add(x)


def test_state_in_a_closure_is_said_with_the_module_that_has_it() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), Remembering(), nn.Linear(8, 2))
    optimizer = Adam(model.parameters(), 1e-2)
    with pytest.warns(UserWarning, match=r"differ, first in 2 \(Remembering\): there is state in"):
        flerm = FLeRM.record(model, optimizer, probe=probe(), family="f")
    assert "Remembering" in flerm._session.remarks.at_end({"a": True}, warns=False)[0]


@pytest.mark.parametrize("kind", ["resmlp", "decoder", "convnet"])
def test_a_model_with_dropout_and_statistics_of_its_batches_is_told_nothing(kind: str) -> None:
    model, batches = fresh(kind)
    model.train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FLeRM.record(model, Adam(model.parameters(), 1e-2), probe=batches, family="f")
