"""What reads the training's autocast region changes no compiled graph, copy or pickle."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from measured_runs import probe, vectors
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim import Adam

from flerm_client import FLeRM


class Net(nn.Sequential):
    """Its forward is the user's own, which torch compiles in place (not its own `Sequential`)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self:
            x = layer(x)
        return x


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))


def wrapped(model: nn.Module, backend: Any) -> nn.Module:
    compiled: nn.Module = torch.compile(model, backend=backend)
    return compiled


def in_place(model: nn.Module, backend: Any) -> nn.Module:
    model.compile(backend=backend, fullgraph=True)
    return model


def by_block(model: nn.Module, backend: Any) -> nn.Module:
    model[0] = torch.compile(model[0], backend=backend, fullgraph=True)
    return model


@pytest.mark.parametrize("how", [wrapped, in_place, by_block])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_model_has_as_many_graphs_and_losses_as_without_a_recording(
    how: Callable[[nn.Module, Any], nn.Module], backend: str
) -> None:
    def train(record: bool) -> tuple[int, int, list[float]]:
        torch._dynamo.reset()
        counter = CompileCounterWithBackend(backend)
        runs = [0]

        def counting(graph: Any, inputs: Any) -> Any:
            compiled = counter(graph, inputs)

            def run(*args: Any) -> Any:
                runs[0] += 1
                return compiled(*args)

            return run

        model = how(net(), counting)
        optimizer = Adam(model.parameters(), 1e-2)
        generator = torch.Generator().manual_seed(1)
        losses = []
        if record:
            flerm = FLeRM.record(
                model, optimizer, probe=[vectors()], family="f", every=5, estimator="kronecker"
            )
        for _ in range(12):
            optimizer.zero_grad()
            loss = model(torch.randn(32, 8, generator=generator)).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if record:
            assert flerm.trajectory.steps.tolist() == [1, 6, 11]
        return counter.frame_count, runs[0], losses

    assert train(True) == train(False)


@pytest.mark.parametrize("how", [None, wrapped, in_place, by_block])
def test_the_region_of_the_training_is_read_through_compiled_code(how: Any) -> None:
    def measure(inside: bool, how: Any) -> dict[str, float]:
        torch._dynamo.reset()
        model = net() if how is None else how(net(), "eager")
        optimizer = Adam(model.parameters(), 1e-2)
        flerm = FLeRM.record(
            model, optimizer, probe=[vectors()], family="f", estimator="exact", every=2
        )
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16, enabled=inside):
                loss = model(vectors()).float().square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return flerm.fslr

    low, full = measure(True, None), measure(False, None)
    assert low != full
    if how is not None:
        assert list(measure(True, how).values()) == pytest.approx(list(low.values()), rel=1e-5)


def restored(model: nn.Module, by: str) -> Any:
    if by == "deepcopy":
        return copy.deepcopy(model)
    if by == "pickle":
        return pickle.loads(pickle.dumps(model))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    with torch.serialization.safe_globals([Net, nn.Linear, nn.Tanh]):
        return torch.load(file, weights_only=True)


@pytest.mark.parametrize("by", ["deepcopy", "pickle", "weights only"])
def test_a_copy_made_in_mid_run_is_as_of_an_unrecorded_model(by: str) -> None:
    plain, model = net(), net()
    optimizer = Adam(model.parameters(), 1e-2)
    flerm = FLeRM.record(model, optimizer, probe=probe(), family="f", every=1)
    model(vectors()).square().mean().backward()
    optimizer.step()
    twin, expected = restored(model, by), restored(plain, by)
    batch = vectors()
    assert torch.equal(twin(batch), model(batch))
    for ours, theirs in zip(twin.modules(), expected.modules(), strict=True):
        assert vars(ours).keys() == vars(theirs).keys()
        assert not ours._forward_pre_hooks
    flerm.close()
    for ours, theirs in zip(model.modules(), expected.modules(), strict=True):
        assert vars(ours).keys() == vars(theirs).keys()


def test_two_recordings_of_one_model_end_in_any_order_and_leave_the_model_plain() -> None:
    model = net()
    optimizer = Adam(model.parameters(), 1e-2)
    first, second = (FLeRM.record(model, optimizer, probe=probe(), family="f") for _ in range(2))
    first.close()
    assert not restored(model, "weights only")._forward_pre_hooks
    second.close()
    assert not restored(model, "weights only")._forward_pre_hooks
    assert not model._forward_pre_hooks
