"""A run that records is, bit for bit, the run without FLeRM.

Losses, weights, buffers, optimiser state and random numbers are equal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from measured_runs import MODELS, Trace, backward, fresh, leave, loss_of, probe, same, trained
from torch import nn
from torch.optim import SGD, Adagrad, Adam, Adamax, AdamW, Optimizer, RMSprop

from flerm_client import FLeRM
from flerm_core.records.recording import ESTIMATORS

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: SGD(p, 0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: Adam(p, 1e-2),
    "adamw-foreach": lambda p: AdamW(p, 1e-2, foreach=True),
    "adamw-fused": lambda p: AdamW(p, 1e-2, fused=True),
    "adagrad": lambda p: Adagrad(p, 1e-2),
    "rmsprop": lambda p: RMSprop(p, 1e-3),
    "adamax": lambda p: Adamax(p, 1e-2),
}


def run(
    name: str,
    optimizer_of: Callable[[Any], Optimizer],
    attach: Callable[[nn.Module, Optimizer], Any] | None,
) -> Trace:
    model, batches = fresh(name)
    optimizer = optimizer_of(model.parameters())
    if attach is not None:
        attach(model, optimizer)
    trace = Trace(losses=trained(model, optimizer, batches))
    return leave(trace, model, optimizer)


def recorder(name: str, **options: Any) -> Callable[[nn.Module, Optimizer], FLeRM]:
    make = MODELS[name][1]

    def attach(model: nn.Module, optimizer: Optimizer) -> FLeRM:
        probe = (
            make() for _ in iter(int, 1)
        )  # draws from the global generators, as a shuffling loader does
        return FLeRM.record(
            model, optimizer, probe=probe, family="f", **({"every": 3, "warmup": 2} | options)
        )

    return attach


@pytest.mark.filterwarnings("ignore:`example` has one sample a draw")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
def test_every_optimizer(model: str, optimizer: str) -> None:
    plain = run(model, OPTIMIZERS[optimizer], None)
    recorded = run(model, OPTIMIZERS[optimizer], recorder(model))
    assert same(plain, recorded)


@pytest.mark.filterwarnings("ignore:`example` has one sample a draw")
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("model", MODELS)
def test_every_estimator(model: str, estimator: str) -> None:
    plain = run(model, OPTIMIZERS["adam"], None)
    recorded = run(model, OPTIMIZERS["adam"], recorder(model, estimator=estimator))
    assert same(plain, recorded)


@pytest.mark.parametrize(("start", "every"), [(1, 1), (8, 1), (1, 7), (3, 2)])
def test_whenever_it_measures(start: int, every: int) -> None:
    plain = run("decoder", OPTIMIZERS["adam"], None)
    seen: list[FLeRM] = []
    attach = recorder("decoder", start=start, every=every)
    recorded = run("decoder", OPTIMIZERS["adam"], lambda *a: seen.append(attach(*a)))
    assert same(plain, recorded)
    assert seen[0].trajectory.steps.tolist() == list(range(start, 9, every))


def test_gradient_accumulation_clipping_and_held_gradients() -> None:
    def train(attach: Any) -> Trace:
        model, batches = fresh("resmlp")
        optimizer = AdamW(model.parameters(), 1e-2)
        if attach:
            attach(model, optimizer)
        trace = Trace()
        optimizer.zero_grad()
        for count, batch in enumerate(batches, 1):
            loss = loss_of(model(batch))
            loss.backward()
            trace.losses.append(loss.item())
            if count % 2 == 0:
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                trace.losses.append(sum(p.grad.sum().item() for p in model.parameters()))
                optimizer.zero_grad()
        return leave(trace, model, optimizer)

    assert same(train(None), train(recorder("resmlp", every=1)))


def test_bfloat16_autocast() -> None:
    def train(attach: Any) -> Trace:
        model, batches = fresh("decoder")
        optimizer = Adam(model.parameters(), 1e-2)
        flerm = attach(model, optimizer) if attach else None
        trace = Trace()
        for batch in batches:
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = loss_of(model(batch).float())
            loss.backward()
            optimizer.step()
            trace.losses.append(loss.item())
        assert flerm is None or flerm._session.measurer.meter.autocast.regions == (
            ("cpu", torch.bfloat16),
        )
        return leave(trace, model, optimizer)

    assert same(train(None), train(recorder("decoder")))


@pytest.mark.slow
def test_a_compiled_model_leaves_no_trace() -> None:
    def train(record: bool) -> Trace:
        model, batches = fresh("resmlp")
        compiled = torch.compile(model)
        optimizer = Adam(compiled.parameters(), 1e-2)
        if record:
            FLeRM.record(compiled, optimizer, probe=probe(), family="f", every=2)
        trace = Trace()
        for batch in batches:
            trace.losses.append(backward(compiled, batch))
            optimizer.step()
        return leave(trace, model, optimizer)

    assert same(train(False), train(True))
