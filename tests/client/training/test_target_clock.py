"""A matched run reads its targets at its base's same step, tokens, or fraction of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from measured_runs import ResMLP, Trace, fresh, leave, loss_of, same
from torch import nn
from torch.optim import Adam

from flerm_client import FLeRM
from flerm_core import Trajectory
from flerm_core.errors import InvalidInput, NotFound

NAMES = [name for name, _ in ResMLP().named_parameters()]
SHAPES = [tuple(p.shape) for p in ResMLP().parameters()]
BASE = Trajectory(
    NAMES, SHAPES, [1, 3, 5], [[value] * len(NAMES) for value in (1, 2, 4)], tokens=[10, 30, 50]
)
"""FSLRs that double every other step, and ten tokens a step."""


def probe() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(32, 8, generator=generator) for _ in range(8)]


class Job:
    """A run that logs `tokens` a step (0: none), and what it aimed for after each."""

    def __init__(self, make: Any = FLeRM.match, tokens: int = 0, **options: Any) -> None:
        self.model, self.batches = fresh("resmlp")
        self.optimizer = Adam(self.model.parameters(), 1e-3)
        options = {"family": "f", "probe": probe(), "warmup": 2} | options
        self.flerm: FLeRM = make(self.model, self.optimizer, **options)
        self.tokens = tokens
        self.losses: list[float] = []
        self.aimed: list[dict[str, float]] = []

    def train(self, first: int = 1, last: int = 8) -> Job:
        """Steps `first` to `last`."""
        for step in range(first, last + 1):
            self.optimizer.zero_grad()
            loss = loss_of(self.model(self.batches[step - 1]))
            loss.backward()
            self.flerm.log(loss, tokens=step * self.tokens if self.tokens else None)
            self.optimizer.step()
            self.losses.append(loss.item())
            self.aimed.append(self.flerm.targets)
        return self

    @property
    def aims(self) -> list[float]:
        """What each step aimed for, of a base whose tensors are all alike."""
        for each in self.aimed:
            assert len(set(each.values())) == 1
        return [each["input.weight"] for each in self.aimed]

    @property
    def trace(self) -> Trace:
        return leave(Trace(losses=self.losses), self.model, self.optimizer)


@pytest.mark.parametrize(
    ("clock", "at"),
    [
        ({}, [1, 3, 5, 5]),
        ({"clock": "step"}, [1, 3, 5, 5]),
        (
            {"clock": "fraction", "total_steps": 10},
            [1, 1.5, 2.5, 3.5],
        ),  # of 5; 0.5 lies before the first measurement
        ({"clock": "fraction", "total_steps": 5}, [1, 3, 5, 5]),
        ({"clock": "fraction", "total_steps": 3}, [5 / 3, 5, 5, 5]),
        ({"clock": "tokens"}, [1.5, 4.5, 5, 5]),  # 15 a step
    ],
)
def test_targets_are_the_bases_by_the_clock(clock: dict[str, Any], at: list[float]) -> None:
    job = Job(targets=BASE, every=2, tokens=15, **clock).train()
    assert job.aims == pytest.approx(
        [2 ** ((step - 1) / 2) for step in at for _ in range(2)], rel=1e-12
    )
    for name, multiplier in job.flerm.multipliers.items():
        assert multiplier * job.flerm.matched_fslr[name] == pytest.approx(
            4.0 if at[-1] == 5 else job.aims[-1], rel=0.03
        )


def recorded(folder: Path, tokens: int = 10) -> str:
    """A folder registry with a base of 8 steps, measured at 1, 4 and 7."""
    registry = f"file://{folder}/registry"
    job = Job(FLeRM.record, tokens, registry=registry, every=3)
    job.train().flerm.close()
    return registry


def test_a_run_as_long_as_its_base_is_the_same_by_fraction_as_by_step(tmp_path: Path) -> None:
    registry = recorded(tmp_path)
    runs = [
        Job(registry=registry, every=1, **clock).train()
        for clock in (
            {},
            {"clock": "fraction", "total_steps": 8},
            {"clock": "fraction", "total_steps": 16},
        )
    ]
    by_step, by_fraction, longer = runs
    assert by_fraction.aimed == by_step.aimed
    assert by_step.aimed[1] != by_step.aimed[2], "it does change from step to step"
    assert same(by_fraction.trace, by_step.trace)
    assert longer.aimed[1::2] == by_step.aimed[:4], "step 2 of 16 is where step 1 of 8 is"


def test_four_times_the_tokens_a_step_go_along_the_base_four_times_as_fast(tmp_path: Path) -> None:
    registry = recorded(tmp_path)
    by_step = Job(registry=registry, every=1).train()
    by_tokens = Job(registry=registry, every=1, clock="tokens", tokens=40).train()
    for mine, its in ((1, 4), (2, 7), (3, 8)):
        assert by_tokens.aimed[mine - 1] == pytest.approx(by_step.aimed[its - 1], rel=1e-12)


CLOCKS: list[dict[str, Any]] = [
    {"clock": "step"},
    {"clock": "tokens"},
    {"clock": "fraction", "total_steps": 9},
]


@pytest.mark.parametrize(
    "stop", [0, 2, *(pytest.param(at, marks=pytest.mark.slow) for at in (1, 5))]
)
@pytest.mark.parametrize("clock", CLOCKS, ids=lambda clock: clock["clock"])
@pytest.mark.parametrize("source", ["trajectory", "registry"])
def test_a_resumed_run_goes_on_by_its_clock(
    source: str, clock: dict[str, Any], stop: int, tmp_path: Path
) -> None:
    targets = {"targets": BASE} if source == "trajectory" else {"registry": recorded(tmp_path)}
    options = {**targets, **clock, "every": 2, "tokens": 7, "estimator": "example"}
    whole = Job(**options).train()
    first = Job(**options).train(last=stop)
    state = torch.load(_saved(first, tmp_path), weights_only=True)
    second = Job(**options)
    second.model.load_state_dict(state["model"])
    second.optimizer.load_state_dict(state["optimizer"])
    second.flerm.load_state_dict(state["flerm"])
    second.train(first=stop + 1)
    assert first.aimed + second.aimed == whole.aimed
    assert first.losses + second.losses == whole.losses
    assert second.flerm.multipliers == whole.flerm.multipliers
    assert same(second.model.state_dict(), whole.model.state_dict())


def _saved(job: Job, folder: Path) -> Path:
    state = {
        "model": job.model.state_dict(),
        "optimizer": job.optimizer.state_dict(),
        "flerm": job.flerm.state_dict(),
    }
    torch.save(state, folder / "checkpoint.pt")
    job.flerm.close()
    return folder / "checkpoint.pt"


def test_a_resumed_run_keeps_the_clock_of_its_checkpoint_and_says_so() -> None:
    first = Job(targets=BASE, every=2, clock="fraction", total_steps=10).train(last=2)
    state = first.flerm.state_dict()
    first.flerm.close()
    second = Job(targets=BASE, every=2, clock="fraction", total_steps=20)
    said = (
        "goes on by clock='fraction', total_steps=10, as its checkpoint has it, "
        "and not by clock='fraction', total_steps=20"
    )
    with pytest.warns(UserWarning, match=said):
        second.flerm.load_state_dict(state)
    assert second.train(first=3, last=4).aims[-1] == pytest.approx(2**0.25, rel=1e-12)


FORGOTTEN = (
    r"clock='tokens': step 3 is to be matched and no tokens were logged for it \(on rank 0\): "
    r"call flerm\.log\(tokens="
)


def test_a_step_without_tokens_is_refused_before_it_begins_and_can_be_taken_again() -> None:
    untouched = Job(targets=BASE, every=2, clock="tokens", tokens=15).train()
    job = Job(targets=BASE, every=2, clock="tokens", tokens=15).train(last=2)
    job.tokens = 0
    before = {name: value.clone() for name, value in job.model.state_dict().items()}
    with pytest.raises(InvalidInput, match=FORGOTTEN):
        job.train(first=3, last=3)
    assert same(dict(job.model.state_dict()), before)
    assert (job.flerm.steps, job.flerm.measurements) == (2, 1)
    job.tokens = 15
    job.train(first=3)
    assert same(job.model.state_dict(), untouched.model.state_dict())
    assert job.aimed == untouched.aimed


def test_tokens_logged_for_a_step_that_the_run_went_back_behind_are_forgotten() -> None:
    job = Job(targets=BASE, every=1, clock="tokens", tokens=15).train(last=2)
    state = job.flerm.state_dict()
    job.train(first=3, last=4)
    job.flerm.log(tokens=75)
    job.flerm.load_state_dict(state)
    job.tokens = 0
    with pytest.raises(InvalidInput, match=FORGOTTEN):
        job.train(first=3, last=3)


def test_steps_that_are_not_matched_need_no_tokens() -> None:
    job = Job(targets=BASE, every=2, clock="tokens", tokens=15)
    for step in range(1, 5):
        job.tokens = 15 * (step % 2)
        job.train(first=step, last=step)
    assert job.aims[2] == pytest.approx(2**1.75, rel=1e-12)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"clock": "epoch"}, "clock='epoch' is not allowed; there are step, tokens, fraction"),
        (
            {"clock": "fraction"},
            "clock='fraction' needs total_steps=, "
            "the number of optimiser steps that this run will have",
        ),
        (
            {"clock": "fraction", "total_steps": 0},
            "total_steps: 0 is not allowed; it must be an integer from 1 to",
        ),
        (
            {"clock": "fraction", "total_steps": 1.5},
            r"total_steps: 1\.5 is not allowed; it must be an integer from 1 to",
        ),
        (
            {"total_steps": 9},
            "total_steps=9 goes with clock='fraction' alone, but clock is 'step'; leave it out",
        ),
        (
            {"clock": "tokens", "total_steps": 9},
            "total_steps=9 goes with clock='fraction' alone, but clock is 'tokens'",
        ),
        (
            {"clock": "tokens", "targets": dict.fromkeys(NAMES, 1.0)},
            "clock='tokens': targets are FSLRs by name, the same at every step; "
            "give a Trajectory or a query's answer",
        ),
    ],
)
def test_what_is_no_clock_is_refused_in_one_sentence(
    options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        Job(**({"targets": BASE} | options))


def test_a_base_without_tokens_is_refused_before_training(tmp_path: Path) -> None:
    alone = Trajectory(NAMES, SHAPES, [1], [[1.0] * len(NAMES)])
    with pytest.raises(
        NotFound,
        match="tokens: 0 asked, but the run of this trajectory logged no tokens; ask by step",
    ):
        Job(targets=alone, clock="tokens")
    with pytest.raises(
        NotFound, match=r"tokens: 0 asked, but the recordings .* logged no tokens; ask by step"
    ):
        Job(registry=recorded(tmp_path, tokens=0), clock="tokens")


@pytest.mark.parametrize("tokens", [-5, 2**53])
def test_what_is_no_count_of_tokens_is_refused_where_it_is_logged(tokens: int) -> None:
    job = Job(FLeRM.record)
    with pytest.raises(
        InvalidInput,
        match=f"tokens: {tokens} is not allowed; it must be an integer from 0 to 9007199254740991",
    ):
        job.flerm.log(tokens=tokens)


def test_tokens_are_recorded_of_the_steps_for_which_they_were_logged_alone() -> None:
    job = Job(FLeRM.record, every=3)
    for step in range(1, 8):
        job.tokens = 10 * (step != 4)
        job.train(first=step, last=step)
    trajectory = job.flerm.trajectory
    assert (trajectory.steps.tolist(), trajectory.tokens.tolist()) == ([1, 4, 7], [10, -1, 70])


@pytest.mark.parametrize("clock", CLOCKS, ids=lambda clock: clock["clock"])
@pytest.mark.parametrize("source", ["trajectory", "registry"])
def test_a_dry_run_compares_with_what_its_clock_says(
    source: str, clock: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = {"targets": BASE} if source == "trajectory" else {"registry": recorded(tmp_path)}
    options = {**targets, **clock, "start": 4, "tokens": 7, "estimator": "example"}
    aimed = Job(**options).train(last=4).aimed[-1]
    with pytest.raises(SystemExit):
        Job(**options, dry_run=True).train(last=4)
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if line.startswith("input.weight"))
    assert line.split()[1] == f"{aimed['input.weight']:.4g}"


class Adapter(nn.Module):
    """LoRA: B is zero at first, so A is matched at the second step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b = nn.Linear(8, 2, bias=False), nn.Linear(2, 5, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))


def test_a_late_tensor_is_matched_by_the_tokens_of_its_own_step() -> None:
    names = ["a.weight", "b.weight"]
    base = Trajectory(names, [(2, 8), (5, 2)], [1, 5], [[1, 1], [4, 4]], tokens=[10, 50])
    model = Adapter()
    optimizer = Adam(model.parameters(), 1e-2)
    flerm = FLeRM.match(model, optimizer, probe=probe(), family="f", targets=base, clock="tokens")
    for step in (1, 2):
        loss_of(model(torch.ones(4, 8))).backward()
        if step == 2:
            with pytest.raises(
                InvalidInput, match="step 2 is to be matched and no tokens were logged"
            ):
                optimizer.step()
        flerm.log(tokens=20 * step)
        optimizer.step()
    assert flerm.targets == pytest.approx({"b.weight": 2**0.5, "a.weight": 2**1.5}, rel=1e-12)


def adapt(make: Any, steps: int, tokens: int, **options: Any) -> FLeRM:
    """A closed run of LoRA, `tokens` a step."""
    model = Adapter()
    optimizer = Adam(model.parameters(), 1e-2)
    flerm: FLeRM = make(
        model, optimizer, **{"probe": probe(), "family": "f", "warmup": 2} | options
    )
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss_of(model(torch.ones(4, 8))).backward()
        flerm.log(tokens=tokens * step)
        optimizer.step()
    flerm.close()
    return flerm


@pytest.mark.parametrize(
    "clock",
    [{"clock": "fraction", "total_steps": 16}, {"clock": "tokens"}],
    ids=lambda each: each["clock"],
)
@pytest.mark.parametrize("source", ["trajectory", "registry"])
def test_a_late_tensor_of_a_run_slower_than_its_base_aims_for_the_bases_first_measurement_of_it(
    source: str, clock: dict[str, Any], tmp_path: Path
) -> None:
    registry = f"file://{tmp_path}/registry"
    base = Trajectory(
        ["a.weight", "b.weight"],
        [(2, 8), (5, 2)],
        [1, 2, 4],
        [[torch.nan, 1], [2, 1], [4, 1]],
        tokens=[20, 40, 80],
    )
    targets: dict[str, Any] = {"targets": base}
    if source == "registry":
        base_run = adapt(FLeRM.record, 8, 20, every=3, registry=registry)
        targets, base = {"registry": registry}, base_run.trajectory
    assert base.steps[:2].tolist() == [1, 2]
    first = base.at(2)["a.weight"]
    once = adapt(FLeRM.match, 2, 10, **targets, **clock)
    assert once.targets["a.weight"] == first
    assert once.multipliers["a.weight"] * once.matched_fslr["a.weight"] == pytest.approx(
        first, rel=0.03
    )
    assert adapt(FLeRM.match, 3, 10, every=1, **targets, **clock).targets["a.weight"] == first, (
        "step 3 is before the base's second"
    )
