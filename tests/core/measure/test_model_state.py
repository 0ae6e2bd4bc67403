"""What a probe's forward makes or changes in a model is as before once it was measured."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.optim import SGD

from flerm_client import FLeRM


def batches(features: int, length: int = 8, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, features, generator=generator) for _ in range(4)]


def trained(make: Callable[[], nn.Module], *, record: bool, length: int = 8) -> list[Any]:
    """The losses of a run, and the model's state at its end. The probe's batches have 8 rows."""
    torch.manual_seed(0)
    model = make()
    optimizer = SGD(model.parameters(), 1e-2)
    if record:
        FLeRM.record(model, optimizer, probe=batches(4, seed=1), family="f", every=2, warmup=2)
    found: list[Any] = []
    for batch in batches(4, length):
        optimizer.zero_grad()
        loss = model(batch).square().mean()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return [*found, [*model.state_dict()], [each.tolist() for each in model.state_dict().values()]]


class Making(nn.Module):
    """Its first forward makes a buffer of the batch's length, a layer, and two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(4, 4)
        self.register_buffer("shift", None)
        self.register_parameter("scale", None)

    def forward(self, x: Tensor) -> Tensor:
        x = self.hidden(x)
        if not hasattr(self, "mask"):
            self.register_buffer("mask", torch.rand(len(x), 1))
            self.readout = nn.Linear(4, 2)
            self.gain = nn.Parameter(torch.rand(2))
            self.cache = iter([1.0])
        if self.shift is None:
            self.shift = torch.rand(2)
            self.scale = nn.Parameter(torch.rand(2))
        return self.readout(x * self.mask) * self.gain * self.scale + self.shift


class Resizing(nn.Module):
    """Resizes a buffer in place in its first forward, as observers of quantisation do."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(4, 4)
        self.register_buffer("largest", torch.zeros(0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.hidden(x)
        now = x.detach().amax(0)
        if not self.largest.numel():
            self.largest.resize_(now.shape).copy_(now)
        self.largest.copy_(torch.maximum(self.largest, now))
        return x / (1 + self.largest.abs())


class Drawing(nn.Module):
    """Draws from generators of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(4, 4)
        self.of_torch = torch.Generator().manual_seed(1)
        self.of_numpy = [np.random.default_rng(1), np.random.RandomState(1)]
        self.of_python = random.Random(1)

    def forward(self, x: Tensor) -> Tensor:
        new, old = self.of_numpy
        drawn = torch.rand(4, generator=self.of_torch) + new.random() + old.rand()
        return self.hidden(x) * (drawn + self.of_python.random())


class Counting(nn.Module):
    """Counts and collects in containers, which the outputs depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(4, 4)
        self.array, self.calls, self.seen = np.zeros(2), Counter(a=1), {0.0}
        self.means: defaultdict[str, list[float]] = defaultdict(list)
        self.ordered: OrderedDict[int, object] = OrderedDict()
        self.mixed: list[Any] = [self.hidden, self.ordered]

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean().item()
        self.array += 1
        self.calls["a"] += 1
        self.seen.add(mean)
        self.means["x"].append(mean)
        self.ordered[len(self.ordered)] = object()
        self.mixed.append(object())
        counts = (self.calls["a"], self.seen, self.means["x"], self.ordered, self.mixed)
        sizes = [each if isinstance(each, int) else len(each) for each in counts]
        return self.hidden(x) * (1 + 0.01 * (sum(sizes) + float(self.array.sum())))


class Momentum(nn.Module):
    """Its second encoder follows the first, in each forward (MoCo)."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        for ours, theirs in zip(self.key.parameters(), self.query.parameters(), strict=True):
            ours.data = 0.9 * ours.data + 0.1 * theirs.data
        return self.query(x) * self.key(x)


class Codebook(nn.Module):
    """Moves the code words that are nearest to its inputs, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(4, 3), nn.Linear(3, 4)
        self.words = nn.Parameter(torch.randn(5, 3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        z = self.encode(x)
        nearest = torch.cdist(z.detach(), self.words).argmin(1)
        self.words.data.index_add_(0, nearest, 0.1 * (z.detach() - self.words[nearest]))
        return self.decode(z + (self.words[nearest] - z).detach())


class Renormed(nn.Module):
    """An embedding whose rows are scaled down when they are read."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(64, 3, max_norm=0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows((x * 8 + 32).long().clamp(0, 63))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("make", [Resizing, Drawing, Counting, Momentum, Codebook, Renormed])
def test_a_forward_that_changes_its_model_trains_as_without_flerm(
    make: Callable[[], nn.Module],
) -> None:
    assert trained(make, record=True) == trained(make, record=False)


def test_the_update_is_that_of_the_weights_before_a_forward_writes_into_them() -> None:
    """The rows that the step leaves alone have no part in the FSLR, though reading shrinks them."""
    torch.manual_seed(0)
    model = nn.Embedding(64, 3, max_norm=0.5)
    optimizer = SGD(model.parameters(), 0.1)
    probe = [torch.arange(64)]
    flerm = FLeRM.record(model, optimizer, probe=probe, family="f", estimator="exact", warmup=1)
    loss = model(torch.arange(4)).square().sum()
    loss.backward()
    assert model.weight.grad is not None
    exact = model.weight.grad.square().mean().sqrt().item()
    optimizer.step()
    assert flerm.fslr["weight"] == pytest.approx(exact, rel=1e-4)


@pytest.mark.filterwarnings("ignore:step 1 was not measured")  # the mask is of other batches then
@pytest.mark.filterwarnings("ignore:measuring has stopped")
@pytest.mark.parametrize("length", [8, 5])
def test_what_a_forward_makes_once_is_made_by_the_training(length: int) -> None:
    plain = trained(Making, record=False, length=length)
    assert trained(Making, record=True, length=length) == plain


def test_a_scripted_layer_with_buffers_is_recorded_without_a_trace() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.BatchNorm1d(4)), nn.Linear(4, 2))

    assert trained(make, record=True) == trained(make, record=False)


@pytest.mark.filterwarnings("error")
def test_a_graph_that_the_training_holds_across_a_step_stays_usable() -> None:
    """It has saved a buffer, and weights that the step leaves alone."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
            self.second, self.readout = nn.Linear(4, 4), nn.Linear(4, 2)
            self.register_buffer("scale", torch.full((4,), 1.5))
            self.kept = torch.full((4,), 1.5)

        def encode(self, x: Tensor) -> Tensor:
            return self.second(self.norm(self.first(x)) * self.scale * self.kept)

        def forward(self, x: Tensor) -> Tensor:
            return self.readout(self.encode(x))

    def run(record: bool) -> tuple[list[float], int]:
        torch.manual_seed(0)
        model = Encoder()
        optimizer = SGD(model.parameters(), 1e-2)
        flerm = None
        if record:
            flerm = FLeRM.record(
                model, optimizer, probe=batches(4, seed=1), family="f", every=1, samples=2
            )
        losses = []
        for batch in batches(4):
            code = model.encode(batch)
            of_readout = model.readout(code.detach()).square().mean()
            of_code = (code - 1).square().mean()
            for loss in (of_readout, of_code):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        return losses, 0 if flerm is None else flerm.measurements

    (plain, _), (recorded, rows) = run(False), run(True)
    assert recorded == plain
    assert rows == 8


@pytest.mark.filterwarnings("error")
def test_a_step_inside_cached_parametrizations_is_measured_without_a_trace() -> None:
    def run(cached: bool, record: bool) -> tuple[list[float], dict[str, float]]:
        torch.manual_seed(0)
        model = nn.Sequential(
            parametrizations.weight_norm(nn.Linear(4, 8)), nn.Tanh(), nn.Linear(8, 2)
        )
        optimizer = SGD(model.parameters(), 1e-2)
        flerm = None
        if record:
            flerm = FLeRM.record(model, optimizer, probe=batches(4, seed=1), family="f", every=1)
        losses = []
        for batch in batches(4):
            with parametrize.cached():
                loss = model(batch).square().mean()
                optimizer.zero_grad()
                loss.backward()
                if cached:
                    optimizer.step()
                    losses.append(model(batch).sum().item())  # of the cached weight
            if not cached:
                optimizer.step()
            losses.append(loss.item())
        return losses, {} if flerm is None else flerm.fslr

    (plain, _), (recorded, inside) = run(True, False), run(True, True)
    assert recorded == plain
    assert inside == run(False, True)[1]
    assert len(inside) == 5
