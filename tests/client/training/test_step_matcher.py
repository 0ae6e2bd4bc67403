"""The steps of a run are matched: the first at once, delayed tensors at the second."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from measured_runs import (
    UNIT_TARGETS,
    Trace,
    fresh,
    leave,
    probe,
    same,
    step,
    vectors,
)
from torch import nn
from torch.optim import (
    Adam,
    AdamW,
)

from flerm_client import FLeRM


def test_the_matched_step_has_the_targets_fslr() -> None:
    model, batches = fresh("resmlp")
    optimizer = Adam(model.parameters(), 1e-3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    flerm = FLeRM.match(
        model,
        optimizer,
        probe=probe(),
        family="f",
        targets=UNIT_TARGETS,
        estimator="exact",
        warmup=8,
    )
    step(model, optimizer, batches[0])
    for name, multiplier in flerm.multipliers.items():
        assert multiplier * flerm.fslr[name] == pytest.approx(1.0, rel=2 ** (1 / 32) - 1)
        assert flerm.learning_rates()[name] == pytest.approx(1e-3 * multiplier)
        moved = (model.get_parameter(name).detach() - before[name]).abs().max().item()
        assert moved == pytest.approx(
            1e-3 * multiplier, rel=1e-3
        )  # Adam's first step is the sign of the gradient


def test_a_matched_run_is_a_plain_run_at_these_rates_from_the_first_step_on() -> None:
    model, batches = fresh("resmlp")
    twin = copy.deepcopy(model)
    optimizer = AdamW(model.parameters(), 1e-3, weight_decay=0.1)
    flerm = FLeRM.match(model, optimizer, probe=probe(), family="f", targets=UNIT_TARGETS)
    for batch in batches:
        step(model, optimizer, batch)
    groups = [
        {"params": [p], "lr": 1e-3 * flerm.multipliers[n]} for n, p in twin.named_parameters()
    ]
    plain = AdamW(groups, 1e-3, weight_decay=0.1)
    for batch in batches:
        step(twin, plain, batch)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, twin.get_parameter(name), rtol=1e-5, atol=1e-6)


def test_a_tensor_without_update_keeps_multiplier_one_and_trains_on() -> None:
    class Adapter(nn.Module):
        """LoRA: B is zero at first, so A has no gradient."""

        def __init__(self) -> None:
            super().__init__()
            self.lora_A = nn.Linear(8, 2, bias=False)
            self.lora_B = nn.Linear(2, 5, bias=False)
            nn.init.zeros_(self.lora_B.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lora_B(self.lora_A(x))

    torch.manual_seed(0)
    model = Adapter()
    optimizer = Adam(model.parameters(), 1e-2)
    targets = {"lora_A.weight": 1.0, "lora_B.weight": 1.0}
    flerm = FLeRM.match(model, optimizer, probe=probe(), family="f", targets=targets)
    step(model, optimizer, vectors())
    assert "lora_A.weight" not in flerm.fslr
    assert flerm.multipliers["lora_A.weight"] == 1.0 != flerm.multipliers["lora_B.weight"]
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_run_whose_base_ties_what_it_does_not_says_so_once() -> None:
    class Decoder(nn.Module):
        def __init__(self, *, tied: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed = nn.Linear(8, 8, bias=False)
            if not tied:
                self.lm_head = nn.Linear(8, 8, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            readout: nn.Linear = getattr(self, "lm_head", self.embed)
            return torch.tanh(self.embed(x)) @ readout.weight

    def train(**keywords: Any) -> FLeRM:
        model = Decoder(tied="targets" not in keywords)
        optimizer = Adam(model.parameters(), 1e-2)
        make = FLeRM.match if "targets" in keywords else FLeRM.record
        flerm = make(model, optimizer, probe=probe(), family="f", estimator="exact", **keywords)
        step(model, optimizer, vectors())
        flerm.close()
        return flerm

    base = train().trajectory
    with pytest.warns(
        UserWarning, match=r"embed\.weight is token embedding and readout in"
    ) as told:
        flerm = train(targets=base)
    assert len(told) == 1
    half = base.at(1)["embed.weight"] / 2**0.5
    assert flerm.targets == pytest.approx({"embed.weight": half, "lm_head.weight": half})


def test_a_run_matched_once_goes_on_recording_its_own_fslrs() -> None:
    def train(record_every: int | None) -> tuple[Trace, FLeRM]:
        model, batches = fresh("resmlp")
        optimizer = Adam(model.parameters(), 1e-3)
        flerm = FLeRM.match(
            model,
            optimizer,
            probe=probe(),
            family="f",
            targets=UNIT_TARGETS,
            estimator="exact",
            record_every=record_every,
        )
        trace = Trace(losses=[step(model, optimizer, batch) for batch in batches])
        return leave(trace, model, optimizer), flerm

    silent, once = train(None)
    recorded, often = train(3)
    assert once.trajectory.steps.tolist() == [1]
    assert often.trajectory.steps.tolist() == [1, 4, 7]
    assert often.multipliers == once.multipliers
    assert often.matched_fslr == once.fslr != often.fslr
    assert same(silent, recorded)


class Factored(nn.Module):
    """Two weights, each with a low-rank term B·A beside it.

    B is 0 at first, so that A has a gradient once B has moved.
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.w = nn.ParameterList(torch.randn(8, 8, generator=generator) for _ in range(2))
        self.a = nn.ParameterList(
            torch.randn(rank, 8, generator=generator) / rank for _ in range(2)
        )
        self.b = nn.ParameterList(torch.zeros(8, rank) for _ in range(2))
        for frozen in self.w:
            frozen.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for w, a, b in zip(self.w, self.a, self.b, strict=True):
            x = torch.tanh(x @ w.T + (x @ a.T @ b.T) / len(a))
        return x


def factored(rank: int, **keywords: Any) -> tuple[nn.Module, FLeRM]:
    model = Factored(rank)
    optimizer = Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    make = FLeRM.match if "targets" in keywords else FLeRM.record
    flerm = make(
        model, optimizer, probe=probe(), family="f", estimator="exact", warmup=4, **keywords
    )
    generator = torch.Generator().manual_seed(6)
    for _ in range(6):
        step(model, optimizer, torch.randn(32, 8, generator=generator))
    flerm.close()
    return model, flerm


@pytest.mark.parametrize("every", [None, 3])
def test_a_tensor_without_an_update_at_the_first_step_is_matched_at_the_second(
    every: int | None,
) -> None:
    base = factored(2)[1].trajectory
    assert base.steps.tolist() == [1, 2]
    a, b = ([f"{kind}.{layer}" for layer in range(2)] for kind in "ab")
    assert all(not base.at(1).get(name, 0) > 0 and base.at(2)[name] > 0 for name in a)
    flerm = factored(8, targets=base, every=every, record_every=None)[1]
    assert flerm.trajectory.steps.tolist() == ([1, 2] if every is None else [1, 2, 4])
    if every is None:
        first, second = (flerm.trajectory.at(at) for at in (1, 2))
        wanted = {name: base.at(1)[name] / first[name] for name in b} | {
            name: base.at(2)[name] / second[name] for name in a
        }
        assert {name: flerm.multipliers[name] for name in wanted} == pytest.approx(
            wanted, rel=2 ** (1 / 32) - 1
        )
        assert {name: flerm.targets[name] for name in wanted} == {
            name: base.at(1 if name in b else 2)[name] for name in wanted
        }
        assert flerm.matched_fslr == pytest.approx(
            {name: (first if name in b else second)[name] for name in wanted}, rel=1e-6
        )
        assert all(flerm.multipliers[name] > 2.5 for name in b), "B moves the outputs by 1 / rank"


def test_a_delayed_tensor_whose_fslr_is_noise_keeps_its_multiplier() -> None:
    class Faint(nn.Module):
        """A and B move the outputs a millionth as far as W does."""

        def __init__(self) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(5)
            self.w, self.v, self.a = (
                nn.Parameter(torch.randn(8, 8, generator=generator)) for _ in range(3)
            )
            self.b = nn.Parameter(torch.zeros(8, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.w.T + x @ self.v.T + 1e-6 * (x @ self.a.T @ self.b.T)

    model = Faint().double()
    optimizer = Adam(model.parameters(), 1e-2)
    batch = torch.randn(32, 8, generator=torch.Generator().manual_seed(6)).double()
    targets = dict.fromkeys("wvab", 1.0)
    flerm = FLeRM.match(
        model, optimizer, probe=[batch], family="f", estimator="exact", targets=targets
    )
    for late in "ba":
        with pytest.warns(UserWarning, match=rf"1 tensors have too small an FSLR .*: {late}$"):
            step(model, optimizer, batch)
    assert flerm.trajectory.steps.tolist() == [1, 2]
    assert flerm.multipliers["a"] == flerm.multipliers["b"] == 1.0
    assert flerm.multipliers["w"] != 1.0


def test_a_run_resumed_between_the_first_and_the_second_step_matches_the_delayed_tensors() -> None:
    base = factored(2)[1].trajectory

    def begun() -> tuple[nn.Module, Adam, FLeRM]:
        model = Factored(8)
        optimizer = Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
        flerm = FLeRM.match(
            model,
            optimizer,
            probe=probe(),
            family="f",
            estimator="exact",
            targets=base,
            record_every=None,
        )
        return model, optimizer, flerm

    def go_on(model: nn.Module, optimizer: Adam) -> None:
        step(model, optimizer, torch.ones(4, 8))

    batch = torch.randn(32, 8, generator=torch.Generator().manual_seed(6))
    model, optimizer, whole = begun()
    step(model, optimizer, batch)
    again, its, resumed = begun()
    again.load_state_dict(model.state_dict())
    its.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed.load_state_dict(whole.state_dict())
    go_on(model, optimizer)
    go_on(again, its)
    assert resumed.multipliers == whole.multipliers
    assert resumed.targets == whole.targets
    assert all(resumed.multipliers[f"a.{layer}"] != 1 for layer in range(2))


def test_a_bias_before_batchnorm_is_noise_which_a_warning_says() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5))
    optimizer = AdamW(model.parameters(), 1e-2)
    targets = {name: 1.0 for name, _ in model.named_parameters()}
    flerm = FLeRM.match(
        model, optimizer, probe=probe(), family="f", targets=targets, estimator="exact"
    )
    with pytest.warns(UserWarning, match=r"1 tensors have too small an FSLR .*: 0\.bias") as told:
        step(model, optimizer, torch.randn(12, 8))
    assert told[0].filename == step.__code__.co_filename  # the line of the loop, not one of ours
    assert flerm.multipliers["0.bias"] == 1.0
    assert flerm.multipliers["0.weight"] != 1.0
