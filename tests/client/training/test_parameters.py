"""Parameters of every condition: tied, frozen, unused, outside the optimiser, without update, in low precision."""

from __future__ import annotations

import math
from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from measured_runs import fresh, loss_of, trained, vectors
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW

from flerm_client import FLeRM
from flerm_core.errors import InvalidInput, MeasurementError, Unsupported


def probe(width: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(32, width, generator=generator) for _ in range(8)]


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor) -> None:
    optimizer.zero_grad()
    loss_of(model(batch)).backward()
    optimizer.step()


def measured(flerm: FLeRM) -> set[str]:
    return set(flerm.fslr)


def test_frozen_parameters_are_not_measured_until_they_train() -> None:
    model, batches = fresh("resmlp")
    model.input.requires_grad_(False)
    optimizer = Adam(model.parameters(), 1e-2)
    flerm = FLeRM.record(model, optimizer, probe=probe(), family="f", every=1)
    step(model, optimizer, batches[0])
    assert {"input.weight", "input.bias"}.isdisjoint(measured(flerm))
    model.input.requires_grad_(True)
    step(model, optimizer, batches[1])
    assert {"input.weight", "input.bias"} <= measured(flerm)
    assert math.isnan(flerm.trajectory.at(1)["input.weight"])


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(8, 5)
        self.idle = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


@pytest.mark.parametrize("estimator", ["example", "kronecker", "full", "iid", "exact"])
def test_unused_parameters_are_unmeasured_also_when_decay_moves_them(estimator: str) -> None:
    torch.manual_seed(0)
    model = Unused()
    optimizer = SGD(model.parameters(), 1e-2, weight_decay=0.1)
    model.idle.weight.grad, model.idle.bias.grad = torch.zeros(5, 8), torch.zeros(5)
    flerm = FLeRM.record(model, optimizer, probe=probe(), family="f", estimator=estimator)
    optimizer.zero_grad(set_to_none=False)
    loss_of(model(torch.randn(12, 8))).backward()
    optimizer.step()
    assert measured(flerm) == {"used.weight", "used.bias"}


def test_parameters_outside_the_optimizer_are_left_alone() -> None:
    model, batches = fresh("resmlp")
    optimizer = SGD(model.readout.parameters(), 1e-2)
    flerm = FLeRM.record(model, optimizer, probe=probe(), family="f")
    step(model, optimizer, batches[0])
    assert measured(flerm) == {"readout.weight", "readout.bias"}


def test_a_tied_tensor_is_one_tensor_under_its_first_name() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode = nn.Linear(8, 6, bias=False)
            self.decode = nn.Linear(6, 8, bias=False)
            self.decode.weight = nn.Parameter(torch.randn(8, 6))
            self.again = nn.Linear(6, 8, bias=False)
            self.again.weight = self.decode.weight

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.encode(x)
            return self.decode(hidden) + self.again(torch.tanh(hidden))

    torch.manual_seed(0)
    model = Tied()
    optimizer = SGD(model.parameters(), 1e-2)
    readings = {}
    for estimator in ("exact", "example"):
        flerm = FLeRM.record(
            model, optimizer, probe=probe(), family="f", estimator=estimator, warmup=64
        )
        step(model, optimizer, torch.randn(12, 8, generator=torch.Generator().manual_seed(1)))
        readings[estimator] = flerm.fslr
        flerm.close()
    assert set(readings["exact"]) == {"encode.weight", "decode.weight"}
    assert readings["example"]["decode.weight"] == pytest.approx(
        readings["exact"]["decode.weight"], rel=0.1
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_weights_are_measured_by_the_update_that_was_made(dtype: torch.dtype) -> None:
    """What the weights' own rounding leaves of the update is what the outputs see; the rest is float32."""
    model, batches = fresh("resmlp")
    model.to(dtype)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = SGD(model.parameters(), 1.0)
    flerm = FLeRM.record(
        model, optimizer, probe=[b.to(dtype) for b in probe()], family="f", warmup=32
    )
    step(model, optimizer, batches[0].to(dtype))
    high, _ = fresh("resmlp")
    for name, parameter in high.named_parameters():
        parameter.data.copy_(before[name].float())
        parameter.grad = before[name].float() - model.get_parameter(name).detach().float()
    reference = FLeRM.record(
        high, (plain := SGD(high.parameters(), 1.0)), probe=probe(), family="f", estimator="exact"
    )
    plain.step()
    errors = [flerm.fslr[name] / value - 1 for name, value in reference.fslr.items()]
    assert max(abs(e) for e in errors) < 0.25
    assert abs(sum(errors) / len(errors)) < 0.05


def test_a_bias_before_batchnorm_is_noise_and_said_so() -> None:
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


@dataclass
class Answer:
    logits: Tensor
    hidden: Tensor


Pair = namedtuple("Pair", "mask logits")
SHAPES: dict[str, Any] = {
    "dataclass": lambda f: Answer(f, f * 2),
    "dict": lambda f: {"hidden": f * 2, "logits": f},
    "tuple of one": lambda f: (f, torch.zeros(3, dtype=torch.bool)),
    "named tuple": lambda f: Pair(torch.zeros(3, dtype=torch.bool), f),
}


class Shaped(nn.Module):
    def __init__(self, shape: Any) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 5)
        self.shape = shape

    def forward(self, x: Tensor) -> Any:
        return self.shape(self.inner(x))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("estimator", ["example", "kronecker", "exact"])
def test_the_output_is_found_in_what_the_model_returns(shape: str, estimator: str) -> None:
    readings = []
    for build in (lambda f: f, SHAPES[shape]):
        torch.manual_seed(0)
        model = Shaped(build)
        optimizer = SGD(model.parameters(), 1e-2)
        flerm = FLeRM.record(model, optimizer, probe=probe(), family="f", estimator=estimator)
        loss_of(model.inner(torch.randn(12, 8))).backward()
        optimizer.step()
        readings.append(flerm.fslr)
    assert readings[0] == readings[1]


def test_several_outputs_are_not_guessed_among() -> None:
    model = Shaped(lambda f: (f, f * 2))
    optimizer = SGD(model.parameters(), 1e-2)
    FLeRM.record(model, optimizer, probe=probe(), family="f")
    loss_of(model.inner(torch.randn(12, 8))).backward()
    with pytest.raises(
        MeasurementError,
        match="returns a tuple with 2 floating-point tensors: say which one is the output with output=",
    ):
        optimizer.step()


def test_a_probe_batch_of_pairs_needs_an_output() -> None:
    model, batches = fresh("resmlp")
    optimizer = SGD(model.parameters(), 1e-2)
    FLeRM.record(model, optimizer, probe=[(torch.randn(4, 8), torch.zeros(4))], family="f")
    with pytest.raises(
        InvalidInput, match=r"a probe batch is a tuple of 2: say how the model is called"
    ):
        step(model, optimizer, batches[0])


@pytest.mark.parametrize(
    ("batches", "sentence"),
    [
        ([], "probe has no batches; at least one is needed"),
        (iter([torch.randn(4, 8)]), "probe ended after 1 batches and cannot begin anew"),
    ],
    ids=["empty", "used up"],
)
def test_a_probe_that_ends_says_so(batches: Any, sentence: str) -> None:
    model, training = fresh("resmlp")
    optimizer = SGD(model.parameters(), 1e-2)
    FLeRM.record(model, optimizer, probe=batches, family="f")
    with pytest.raises(InvalidInput, match=sentence):
        step(model, optimizer, training[0])


def test_a_diverged_run_keeps_its_last_finite_measurement_and_its_own_course() -> None:
    model, batches = fresh("resmlp")
    optimizer = SGD(model.parameters(), 1e-2)
    flerm = FLeRM.record(model, optimizer, probe=probe(), family="f", every=1)
    step(model, optimizer, batches[0])
    last = flerm.fslr
    optimizer.zero_grad()
    loss_of(model(batches[1] * torch.nan)).backward()
    optimizer.step()
    assert flerm.fslr == last
    assert flerm.trajectory.steps.tolist() == [1]
    assert all(p.isnan().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"every": 0.5}, r"every=0\.5 is not allowed; a whole number from 0 is"),
        ({"warmup": 0}, r"warmup=0 is not allowed; a whole number from 1 is"),
        ({"start": 0}, r"start=0 is not allowed; a whole number from 1 is"),
        (
            {"estimator": "best"},
            r"estimator='best' is not known; there are: example, kronecker, iid, full, exact",
        ),
        ({"lr": -1.0}, r"lr=-1\.0 is not allowed; a finite number above 0 is"),
        ({"family": "a b"}, r"family"),
        ({"probe": 3}, r"probe is a int; allowed is an iterable of input batches"),
        (
            {"output_weight": "nothing", "estimator": "kronecker"},
            r"output_weight='nothing' is not a measured tensor of 2 dimensions",
        ),
    ],
)
def test_a_wrong_argument_is_named_with_what_is_allowed(
    options: dict[str, Any], sentence: str
) -> None:
    model, _ = fresh("resmlp")
    before = dict(vars(optimizer := SGD(model.parameters(), 1e-2)))
    with pytest.raises(InvalidInput, match=sentence):
        FLeRM.record(model, optimizer, **({"probe": probe(), "family": "f"} | options))
    assert dict(vars(optimizer)) == before


def test_parameters_that_share_their_memory_train_as_without_us() -> None:
    def train(record: bool) -> list[float]:
        model, batches = fresh("resmlp")
        model.blocks[2].weight.data = model.blocks[0].weight.data
        optimizer = SGD(model.parameters(), 0.1)
        if record:
            FLeRM.record(model, optimizer, probe=[vectors()], family="f", every=2)
        return trained(model, optimizer, batches)

    assert train(True) == train(False)


def test_complex_parameters_are_refused_by_name() -> None:
    model = nn.Linear(8, 5)
    model.phase = nn.Parameter(torch.ones(5, dtype=torch.complex64))
    with pytest.raises(Unsupported, match="phase is complex"):
        FLeRM.record(model, SGD(model.parameters(), 0.1), probe=[vectors()], family="f")


def test_a_sparse_embedding_is_measured_as_a_dense_one() -> None:
    def fslrs(sparse: bool) -> dict[str, float]:
        torch.manual_seed(3)
        model = nn.Sequential(nn.Embedding(13, 8, sparse=sparse), nn.Linear(8, 5))
        optimizer = SGD(model.parameters(), 0.1)
        flerm = FLeRM.record(model, optimizer, probe=[torch.arange(12)], family="f")
        loss_of(model(torch.arange(12))).backward()
        optimizer.step()
        return flerm.fslr

    assert fslrs(sparse=True) == pytest.approx(fslrs(sparse=False))


def test_tensors_that_no_optimizer_steps_any_more_are_unmeasured() -> None:
    model, batches = fresh("resmlp")
    optimizer = SGD(
        [{"params": model.blocks.parameters()}, {"params": model.readout.parameters()}], 0.1
    )
    flerm = FLeRM.record(model, optimizer, probe=[vectors()], family="f", every=1)
    for batch in batches[:2]:
        loss_of(model(batch)).backward()
        optimizer.step()
        last = flerm.fslr
        optimizer.param_groups = optimizer.param_groups[:1]
    assert (
        set(last)
        == set(flerm.learning_rates())
        == {f"blocks.{i}.{leaf}" for i in range(3) for leaf in ("weight", "bias")}
    )
