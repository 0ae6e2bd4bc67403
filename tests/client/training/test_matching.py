"""Matching: after the first measured step every tensor moves as far in function space as its target says; groups stay the
user's."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from measured_runs import ResMLP, Trace, fresh, leave, loss_of, same, vectors
from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from flerm_client import FLeRM
from flerm_core.errors import InvalidInput

ONES = dict.fromkeys(dict(ResMLP().named_parameters()), 1.0)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor) -> float:
    optimizer.zero_grad()
    loss = loss_of(model(batch))
    loss.backward()
    optimizer.step()
    return loss.item()


def probe() -> Any:
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(32, 8, generator=generator) for _ in range(8)]


def test_the_matched_step_has_the_targets_fslr() -> None:
    model, batches = fresh("resmlp")
    optimizer = Adam(model.parameters(), 1e-3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    flerm = FLeRM.match(
        model, optimizer, probe=probe(), family="f", targets=ONES, estimator="exact", warmup=8
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
    flerm = FLeRM.match(model, optimizer, probe=probe(), family="f", targets=ONES)
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


SCHEDULERS: dict[str, Any] = {
    "lambda": lambda o: LambdaLR(o, lambda t: 0.9**t),
    "step": lambda o: StepLR(o, 2),
    "cosine": lambda o: CosineAnnealingLR(o, 8),
    "onecycle": lambda o: OneCycleLR(o, 1e-2, total_steps=10),
    "sequential": lambda o: SequentialLR(o, [StepLR(o, 1), CosineAnnealingLR(o, 8)], [3]),
    "plateau": lambda o: ReduceLROnPlateau(o, patience=0, threshold=10.0),
}


@pytest.mark.parametrize("first", ["scheduler", "flerm"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers_and_checkpoints_do_not_see_us(scheduler: str, first: str) -> None:
    def train(targets: dict[str, float] | None) -> tuple[Trace, list[Any]]:
        model, batches = fresh("resmlp")
        optimizer = SGD(
            [{"params": model.blocks.parameters(), "weight_decay": 0.1}], 1e-2, momentum=0.9
        )
        optimizer.add_param_group(
            {"params": [*model.input.parameters(), *model.readout.parameters()], "lr": 2e-2}
        )
        schedule = SCHEDULERS[scheduler](optimizer) if first == "scheduler" else None
        if targets:
            FLeRM.match(
                model,
                optimizer,
                probe=probe(),
                family="f",
                targets=targets,
                lr=1e-2,
                clamp=(1.0, 1.0),
            )
        schedule = schedule or SCHEDULERS[scheduler](optimizer)
        trace, seen = Trace(), []
        for batch in batches:
            loss = step(model, optimizer, batch)
            schedule.step(*([loss] if scheduler == "plateau" else []))
            trace.losses.append(loss)
            seen.append(
                [
                    {k: v for k, v in group.items() if k != "params"}
                    for group in optimizer.param_groups
                ]
            )
        return leave(trace, model, optimizer), seen

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain, matched = train(None), train(ONES)
    assert same(plain, matched)


def test_an_exception_in_step_leaves_the_groups_the_users() -> None:
    model, batches = fresh("resmlp")
    optimizer = SGD(model.parameters(), 1e-2)
    FLeRM.match(model, optimizer, probe=probe(), family="f", targets=ONES)
    step(model, optimizer, batches[0])
    groups = optimizer.param_groups

    def closure() -> float:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(closure)
    assert optimizer.param_groups is groups
    assert [group["lr"] for group in groups] == [1e-2]
    step(model, optimizer, batches[1])


def test_parameters_that_join_in_mid_run_train_unmatched() -> None:
    model, batches = fresh("resmlp")
    late = list(model.readout.parameters())
    early = [p for p in model.parameters() if all(p is not q for q in late)]
    optimizer = SGD(early, 1e-2)
    targets = {n: v for n, v in ONES.items() if not n.startswith("readout")}
    flerm = FLeRM.match(model, optimizer, probe=probe(), family="f", targets=targets)
    step(model, optimizer, batches[0])
    optimizer.add_param_group({"params": late, "lr": 5e-2})
    before = model.readout.bias.detach().clone()
    step(model, optimizer, batches[1])
    torch.testing.assert_close(before - 5e-2 * model.readout.bias.grad, model.readout.bias.detach())
    assert "readout.bias" not in flerm.multipliers


def test_a_parameter_that_is_replaced_in_mid_run_trains_unmatched() -> None:
    model, batches = fresh("resmlp")
    optimizer = SGD(model.parameters(), 1e-2)
    FLeRM.match(model, optimizer, probe=probe(), family="f", targets=ONES)
    step(model, optimizer, batches[0])
    step(model, optimizer, batches[1])
    model.input.weight = nn.Parameter(model.input.weight.detach().clone())
    optimizer.param_groups[0]["params"][0] = model.input.weight
    before = model.input.weight.detach().clone()
    step(model, optimizer, batches[2])
    assert torch.equal(model.input.weight, before.sub(model.input.weight.grad, alpha=1e-2))


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


def test_a_step_at_rate_zero_is_not_measured_but_the_next_one_is() -> None:
    model, batches = fresh("resmlp")
    optimizer = SGD(model.parameters(), 1e-2)
    flerm = FLeRM.record(model, optimizer, probe=probe(), family="f", every=100)
    schedule = LambdaLR(optimizer, lambda t: min(1.0, t / 2))
    for batch in batches[:3]:
        step(model, optimizer, batch)
        schedule.step()
    assert flerm.trajectory.steps.tolist() == [2]


def test_matching_begins_at_the_step_at_which_its_base_was_first_measured(tmp_path: Path) -> None:
    folder = f"file://{tmp_path}"

    def run(make: Any, **options: Any) -> FLeRM:
        model, batches = fresh("resmlp")
        optimizer = SGD(model.parameters(), 1e-2)
        options |= {"probe": probe(), "family": "f", "registry": folder, "warmup": 1}
        with make(model, optimizer, **options) as flerm:
            for batch in batches[:4]:
                step(model, optimizer, batch)
        return flerm

    run(FLeRM.record, start=3)
    assert run(FLeRM.match).trajectory.steps.tolist() == [3]
    assert run(FLeRM.match, start=2).trajectory.steps.tolist() == [2]


def test_targets_that_miss_a_tensor_are_refused_by_name() -> None:
    model, _ = fresh("resmlp")
    some = {name: 1.0 for name in ONES if name != "readout.bias"}
    with pytest.raises(
        InvalidInput, match=r"targets has no value for readout\.bias; it has input\.weight"
    ):
        FLeRM.match(model, SGD(model.parameters(), 1e-2), probe=probe(), family="f", targets=some)


def test_two_optimizers_on_one_model() -> None:
    model, batches = fresh("resmlp")
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors_ = [p for p in model.parameters() if p.ndim == 1]
    both = [SGD(matrices, 1e-2), Adam(vectors_, 1e-3)]
    flerm = FLeRM.match(
        model, both, probe=probe(), family="f", lr=1e-2, targets=ONES, estimator="exact"
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


def test_a_run_matched_once_goes_on_recording_its_own_fslrs() -> None:
    def train(record_every: int | None) -> tuple[Trace, FLeRM]:
        model, batches = fresh("resmlp")
        optimizer = Adam(model.parameters(), 1e-3)
        flerm = FLeRM.match(
            model,
            optimizer,
            probe=probe(),
            family="f",
            targets=ONES,
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


def test_matching_and_recording_each_keep_their_own_time() -> None:
    model, batches = fresh("resmlp")
    optimizer = SGD(model.parameters(), 1e-2)
    flerm = FLeRM.match(
        model,
        optimizer,
        probe=probe(),
        family="f",
        targets=ONES,
        start=2,
        every=4,
        record_every=3,
        estimator="exact",
    )
    matched: list[float] = []
    for batch in batches:
        step(model, optimizer, batch)
        matched.append(flerm.multipliers["input.weight"])
    assert flerm.trajectory.steps.tolist() == [2, 5, 6, 8]
    assert [matched.index(m) + 1 for m in dict.fromkeys(matched)] == [1, 2, 6]


def test_a_step_that_was_tried_again_does_not_shift_those_that_follow() -> None:
    model, batches = fresh("resmlp")
    optimizer = SGD(model.parameters(), 1e-2)
    flerm = FLeRM.record(model, optimizer, probe=probe(), family="f", every=3)
    schedule = LambdaLR(optimizer, lambda t: float(t > 1))
    for batch in batches:
        step(model, optimizer, batch)
        schedule.step()
    assert flerm.trajectory.steps.tolist() == [3, 4, 7]


class Factored(nn.Module):
    """Two weights, each with a low-rank term B·A beside it, B = 0 at first: A has a gradient once B has moved."""

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


def test_a_tensor_that_is_late_and_noise_keeps_its_multiplier() -> None:
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


def test_a_run_resumed_between_the_two_matches_what_was_late() -> None:
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
