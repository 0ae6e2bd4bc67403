"""A signal handler that raises, at any moment of a measured step, leaves nothing half changed."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from measured_runs import probe, vectors
from torch import nn
from torch.optim import SGD

from flerm_client import FLeRM
from flerm_client.training.signal_deferral import SignalDeferral


class Interrupted(BaseException):
    """What the handlers of these tests raise."""


@pytest.fixture
def alarm() -> Iterator[list[bool]]:
    """Whether SIGALRM raises `Interrupted`; it does so once after each time this was set."""
    armed = [False]

    def raise_once(*_: Any) -> None:
        if armed[0]:
            armed[0] = False
            raise Interrupted

    before = signal.signal(signal.SIGALRM, raise_once)
    yield armed
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def interrupted_step(armed: list[bool], matched: bool, generator: random.Random) -> bool:
    """Whether a step was interrupted after its update; asserts that nothing is half changed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    frozen = model[0].bias.requires_grad_(False)
    optimizer = SGD(model.parameters(), 1e-2)
    options: dict[str, Any] = {"probe": probe(), "family": "f", "estimator": "kronecker"}
    if matched:
        targets = {name: 1.0 for name, _ in model.named_parameters()}
        FLeRM.match(model, optimizer, targets=targets, warmup=2, **options)
    else:
        FLeRM.record(model, optimizer, warmup=1, **options)
    model(vectors()).square().mean().backward()
    groups = optimizer.param_groups
    gradients = [p.grad for p in model.parameters()]
    left: dict[str, Any] = {}

    def stepped(*_: Any) -> None:
        left["weights"] = [p.detach().clone() for p in model.parameters()]
        left["random"] = torch.get_rng_state()
        armed[0] = True
        signal.setitimer(signal.ITIMER_REAL, generator.uniform(1e-5, 6e-3))

    optimizer.register_step_post_hook(stepped)
    hit = True
    with contextlib.suppress(Interrupted):
        optimizer.step()
        armed[0] = False  # past this block, nothing would catch what the handler raises
        hit = False
    assert torch.equal(torch.get_rng_state(), left["random"])
    assert optimizer.param_groups is groups and groups[0]["lr"] == 1e-2
    assert not frozen.requires_grad and torch.is_grad_enabled()
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert not any(p._backward_hooks for p in model.parameters())
    if hit and not matched:  # a match that was over by then has made the update again
        for parameter, weight in zip(model.parameters(), left["weights"], strict=True):
            assert torch.equal(parameter, weight)
    return hit


def interrupt(armed: list[bool], matched: bool, times: int) -> None:
    generator, hits = random.Random(0), 0
    for _ in range(20 * times):
        hits += interrupted_step(armed, matched, generator)
        if hits == times:
            return
    raise AssertionError(f"the signal came in time {hits} times only")


@pytest.mark.parametrize("matched", [False, True])
def test_an_interrupt_leaves_weights_generators_and_groups_whole(
    alarm: list[bool], matched: bool
) -> None:
    interrupt(alarm, matched, 25)


@pytest.mark.slow
@pytest.mark.parametrize("matched", [False, True])
def test_thousands_of_interrupts_leave_everything_whole(alarm: list[bool], matched: bool) -> None:
    interrupt(alarm, matched, 3000)


def test_an_interrupt_ends_a_measurement_before_its_next_draw() -> None:
    model = nn.Linear(8, 2)
    optimizer = SGD(model.parameters(), 1e-2)
    drawn: list[int] = []

    def batches() -> Iterator[torch.Tensor]:
        while True:
            drawn.append(len(drawn))
            if len(drawn) == 2:  # the first batch is drawn when the run begins
                signal.raise_signal(signal.SIGINT)
            yield vectors()

    FLeRM.record(model, optimizer, probe=batches(), family="f", warmup=8)
    model(vectors()).sum().backward()
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert drawn == [0, 1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signals_reach_handlers_at_once_inside_the_users_step_and_closure() -> None:
    model = nn.Linear(8, 2)
    optimizer = SGD(model.parameters(), 1e-2)
    before = model.weight.detach().clone()
    FLeRM.record(model, optimizer, probe=probe(), family="f")

    def closure() -> float:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the signal's handler has raised before")

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert torch.equal(model.weight, before)


def test_a_handler_that_calls_the_one_before_it_is_called_once() -> None:
    calls: list[str] = []
    first = signal.signal(signal.SIGUSR1, lambda *_: calls.append("first"))
    try:
        with SignalDeferral() as signals:
            signals.defer()

            def chain() -> None:
                before = signal.getsignal(signal.SIGUSR1)
                assert callable(before)
                signal.signal(signal.SIGUSR1, lambda *a: (calls.append("second"), before(*a)))

            signals.run_open(chain)
            signal.raise_signal(signal.SIGUSR1)
            assert calls == []
        assert calls == ["second", "first"]
        signal.raise_signal(signal.SIGUSR1)
        assert calls == ["second", "first"] * 2
    finally:
        signal.signal(signal.SIGUSR1, first)


def test_in_another_thread_handlers_stay_as_they_are() -> None:
    seen: list[Any] = []

    def enter() -> None:
        with SignalDeferral() as signals:
            signals.defer()
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter, daemon=True)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
