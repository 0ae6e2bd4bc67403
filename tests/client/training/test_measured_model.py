"""Tensors of every condition (tied, frozen, unused, not optimised), and outputs of every form."""

from __future__ import annotations

import math
from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from measured_runs import (
    fresh,
    loss_of,
    probe,
    step,
    trained,
    vectors,
)
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.optim import (
    SGD,
    Adam,
)

from flerm_client import FLeRM
from flerm_client.training.measured_model import to_device
from flerm_core.errors import InvalidInput, MeasurementError, Unsupported
from flerm_core.records.recording import ESTIMATORS


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


@pytest.mark.parametrize("estimator", ESTIMATORS)
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


def test_among_several_outputs_none_is_guessed() -> None:
    model = Shaped(lambda f: (f, f * 2))
    optimizer = SGD(model.parameters(), 1e-2)
    sentence = (
        "returns a tuple with 2 floating-point tensors: say which one is the output with output="
    )
    with FLeRM.record(model, optimizer, probe=probe(), family="f"):
        loss_of(model.inner(torch.randn(12, 8))).backward()
        with pytest.warns(UserWarning, match=sentence):
            optimizer.step()
    targets = {name: 1.0 for name, _ in model.named_parameters()}
    with pytest.raises(MeasurementError, match=sentence):
        FLeRM.match(model, optimizer, probe=probe(), family="f", targets=targets)


def test_a_probe_batch_of_pairs_needs_an_output() -> None:
    model, batches = fresh("resmlp")
    optimizer = SGD(model.parameters(), 1e-2)
    pairs = [(torch.randn(4, 8), torch.zeros(4))]
    sentence = "a probe batch is a tuple of 2: say how the model is called"
    recording = FLeRM.record(model, optimizer, probe=pairs, family="f")
    with pytest.warns(UserWarning, match=sentence):
        step(model, optimizer, batches[0])
    recording.close()
    targets = {name: 1.0 for name, _ in model.named_parameters()}
    with pytest.raises(InvalidInput, match=sentence):
        FLeRM.match(model, optimizer, probe=pairs, family="f", targets=targets)


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


def test_tensors_of_the_optimizer_that_the_model_does_not_hold_are_told_of() -> None:
    """A loss has weights of its own, as those of several tasks or of margins."""
    model, batches = fresh("resmlp")
    scale = nn.Parameter(torch.ones(()))
    optimizer = Adam([*model.parameters(), scale], 1e-2)
    with pytest.warns(UserWarning, match="steps 1 tensors that are not in the model: they are"):
        flerm = FLeRM.record(model, optimizer, probe=probe(), family="f")
    (loss_of(model(batches[0])) * scale).backward()
    optimizer.step()
    assert measured(flerm) == {name for name, _ in model.named_parameters()}


def test_lazy_tensors_are_refused_by_name_until_they_have_a_shape() -> None:
    model = nn.Sequential(nn.LazyLinear(6), nn.Tanh(), nn.LazyLinear(5))
    optimizer = SGD(model.parameters(), 0.1)
    with pytest.raises(InvalidInput, match=r"0\.weight has no shape yet: call the model once"):
        FLeRM.record(model, optimizer, probe=[vectors()], family="f")
    model(vectors())
    flerm = FLeRM.record(model, optimizer, probe=[vectors()], family="f")
    loss_of(model(vectors())).backward()
    optimizer.step()
    assert measured(flerm) == {name for name, _ in model.named_parameters()}


class Writing(nn.Module):
    """Writes into its inputs, as a normalisation in place does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.mul_(0.5))


@pytest.mark.filterwarnings("error")
def test_a_forward_that_writes_into_its_inputs_leaves_the_probe_as_it_was() -> None:
    batches = [vectors(), vectors()]
    before = [each.clone() for each in batches]
    torch.manual_seed(0)
    model = Writing()
    optimizer = SGD(model.parameters(), 0.1)
    FLeRM.record(model, optimizer, probe=batches, family="f", every=1)
    for _ in range(2):
        loss_of(model(vectors())).backward()
        optimizer.step()
    assert all(map(torch.equal, batches, before))


def test_packed_sequences_keep_their_batch_sizes_on_the_host() -> None:
    packed = pack_sequence([torch.ones(n, 8) for n in (1, 3)], enforce_sorted=False)
    moved = to_device({"x": packed}, torch.device("meta"))["x"]
    assert (moved.data.is_meta, moved.sorted_indices.is_meta) == (True, True)
    assert torch.equal(moved.batch_sizes, packed.batch_sizes)
