"""Weight decay of a matched run: multiplied with the rate, or independent of the multipliers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from measured_runs import fresh, loss_of
from torch import nn
from torch.optim import SGD, Adam, AdamW, Muon, NAdam, Optimizer

from flerm_client import FLeRM
from flerm_core.errors import InvalidInput, NotFound

RATE, DECAY = 1e-2, 0.5


def probe() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(32, 8, generator=generator) for _ in range(4)]


def backward(model: nn.Module, batch: torch.Tensor) -> None:
    model.zero_grad()
    loss_of(model(batch)).backward()


def matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.ndim == 2}


KINDS: dict[str, Callable[[Any, float], Optimizer]] = {
    "adamw": lambda groups, decay: AdamW(groups, RATE, weight_decay=decay),
    "adamw-fused": lambda groups, decay: AdamW(groups, RATE, weight_decay=decay, fused=True),
    "adam-decoupled": lambda groups, decay: Adam(
        groups, RATE, weight_decay=decay, decoupled_weight_decay=True
    ),
    "nadam-decoupled": lambda groups, decay: NAdam(
        groups, RATE, weight_decay=decay, decoupled_weight_decay=True
    ),
    "muon": lambda groups, decay: Muon(groups, RATE, weight_decay=decay),
}


@pytest.mark.parametrize("mode", ["coupled", "independent"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_matched_run_is_a_loop_by_hand_from_the_first_step_on(kind: str, mode: str) -> None:
    """Every tensor decays by rate · λ, with or without its multiplier, and then steps undecayed."""
    model, batches = fresh("resmlp")
    twin = copy.deepcopy(model)
    optimizer = KINDS[kind](matrices(model).values(), DECAY)
    targets = dict.fromkeys(matrices(model), 1.0)
    flerm = FLeRM.match(
        model,
        optimizer,
        probe=probe(),
        family="f",
        targets=targets,
        weight_decay=mode,
        every=3,
        estimator="exact",
        lr=RATE,
    )
    ours = matrices(twin)
    hand = KINDS[kind]([{"params": [p]} for p in ours.values()], 0.0)
    for batch in batches:
        backward(model, batch)
        optimizer.step()
        assert [group["weight_decay"] for group in optimizer.param_groups] == [DECAY]
        backward(twin, batch)
        for group, (name, parameter) in zip(hand.param_groups, ours.items(), strict=True):
            m = flerm.multipliers[name]
            group["lr"] = RATE * m
            parameter.data.mul_(1.0 - RATE * DECAY * (m if mode == "coupled" else 1.0))
        hand.step()
        for name, parameter in ours.items():
            torch.testing.assert_close(model.get_parameter(name), parameter, rtol=1e-4, atol=1e-5)
    assert len({*flerm.multipliers.values()}) > 1


@pytest.mark.parametrize("estimator", ["example", "kronecker", "exact"])
def test_an_independent_decay_is_no_part_of_what_is_measured(estimator: str) -> None:
    def measured(decay: float, mode: str) -> dict[str, float]:
        model, batches = fresh("resmlp")
        optimizer = AdamW(model.parameters(), RATE, weight_decay=decay)
        flerm = FLeRM.record(
            model, optimizer, probe=probe(), family="f", weight_decay=mode, estimator=estimator
        )
        backward(model, batches[0])
        optimizer.step()
        return flerm.fslr

    without = measured(0.0, "coupled")
    assert measured(DECAY, "independent") == pytest.approx(without, rel=1e-4)
    assert measured(DECAY, "coupled") != pytest.approx(without, rel=1e-2)


def test_a_tensor_without_gradient_neither_decays_nor_moves() -> None:
    model, batches = fresh("resmlp")
    optimizer = AdamW(model.parameters(), RATE, weight_decay=DECAY)
    flerm = FLeRM.record(
        model, optimizer, probe=probe(), family="f", weight_decay="independent", estimator="exact"
    )
    backward(model, batches[0])
    model.readout.weight.grad = None
    optimizer.step()
    assert "readout.weight" not in flerm.fslr and "input.weight" in flerm.fslr


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_a_decay_inside_the_gradient_cannot_be_independent(kind: Any) -> None:
    model, _ = fresh("resmlp")
    with pytest.raises(
        InvalidInput,
        match=rf"weight_decay='independent' is not allowed with {kind.__name__}"
        r"\(weight_decay=0.5\), which adds the decay "
        r"to the gradient; optimisers that keep it apart \(AdamW, Muon\) are, or a decay of 0",
    ):
        FLeRM.record(
            model,
            kind(model.parameters(), RATE, weight_decay=DECAY),
            probe=probe(),
            family="f",
            weight_decay="independent",
        )
    FLeRM.record(
        model, kind(model.parameters(), RATE), probe=probe(), family="f", weight_decay="independent"
    ).close()


def test_an_unknown_mode_is_refused() -> None:
    model, _ = fresh("resmlp")
    with pytest.raises(
        InvalidInput, match="weight_decay='none' is not allowed; 'coupled' and 'independent' are"
    ):
        FLeRM.record(
            model, AdamW(model.parameters()), probe=probe(), family="f", weight_decay="none"
        )


def test_targets_measured_with_the_decay_are_not_those_of_a_run_without(tmp_path: Any) -> None:
    registry = f"file://{tmp_path}"
    for mode in ("coupled", "independent"):
        model, batches = fresh("resmlp")
        optimizer = AdamW(model.parameters(), RATE, weight_decay=DECAY)
        with FLeRM.record(
            model, optimizer, probe=probe(), family=mode, registry=registry, weight_decay=mode
        ):
            backward(model, batches[0])
            optimizer.step()
    model, batches = fresh("resmlp")
    optimizer = AdamW(model.parameters(), RATE, weight_decay=DECAY)
    with pytest.raises(NotFound, match="weight_decay_mode"):
        FLeRM.match(
            model,
            optimizer,
            probe=probe(),
            family="coupled",
            registry=registry,
            weight_decay="independent",
        )
    flerm = FLeRM.match(
        model,
        optimizer,
        probe=probe(),
        family="independent",
        registry=registry,
        weight_decay="independent",
    )
    backward(model, batches[0])
    optimizer.step()
    assert flerm.multipliers == pytest.approx(dict.fromkeys(flerm.multipliers, 1.0), rel=0.5)
