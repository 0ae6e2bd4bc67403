"""Small models of every kind, in float64, each with a function that makes its batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class Case:
    model: nn.Module
    batch: Callable[[int], Any]  # seed -> batch


def mlp() -> Case:
    model = nn.Sequential(
        nn.Linear(6, 10), nn.Tanh(), nn.LayerNorm(10), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 4)
    )
    return Case(model, lambda seed: _normal(seed, 12, 6))


def convolution() -> Case:
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.GroupNorm(2, 6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3, stride=2),
        nn.Flatten(),
        nn.Linear(36, 3),
    )
    return Case(model, lambda seed: _normal(seed, 10, 2, 8, 8))


class Embedder(nn.Module):
    """A tiny language model: embedding, a linear used twice, tied readout with its own bias."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.mix = nn.Linear(6, 6)
        self.norm = nn.RMSNorm(6)
        self.readout = nn.Linear(6, 11)
        self.readout.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = x + torch.tanh(self.mix(x.cumsum(1)))
        x = x + torch.tanh(self.mix(x))
        return self.readout(self.norm(x))


def embedding() -> Case:
    return Case(
        Embedder(),
        lambda seed: torch.randint(0, 11, (9, 5), generator=torch.Generator().manual_seed(seed)),
    )


class Behind(nn.Module):
    """Parameters whose uses are hard to observe.

    One that no leaf module holds, a weight read without calling its module, packed attention, and a
    recurrent cell.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(6))
        self.inner = nn.Linear(6, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.recurrent = nn.GRU(6, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x * self.scale)
        x = x + F.linear(x, self.inner.weight.T)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.recurrent(x)[0].mean(1))


def behind() -> Case:
    return Case(Behind(), lambda seed: _normal(seed, 8, 4, 6))


class SequenceFirst(nn.Module):
    """Activations [time, examples, features], then rows flattened time-major."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.second = nn.Linear(6, 6)
        self.third = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x.transpose(0, 1)))
        time, examples, width = x.shape
        x = torch.tanh(self.second(x.reshape(time * examples, width)))
        return self.third(x.reshape(time, examples, width).cumsum(0)).transpose(0, 1)


def sequence_first() -> Case:
    return Case(SequenceFirst(), lambda seed: _normal(seed, 5, 5, 4))


class Positions(nn.Module):
    """Activations that all examples share: positions looked up once, and added by broadcasting."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 6)
        self.places = nn.Embedding(9, 6)
        self.kinds = nn.Embedding(3, 6)
        self.soften = nn.Linear(6, 6)
        self.readout = nn.Linear(6, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        time = torch.arange(tokens.shape[1])
        x = self.tokens(tokens) + self.soften(torch.tanh(self.places(time)))
        x = x + self.kinds(time % 3).unsqueeze(0)
        return self.readout(torch.tanh(x))


def positions() -> Case:
    return Case(
        Positions(),
        lambda seed: torch.randint(0, 11, (9, 9), generator=torch.Generator().manual_seed(seed)),
    )


class Coupled(nn.Module):
    """BatchNorm in train mode: every example moves every other's output."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))


def coupled() -> Case:
    return Case(Coupled(), lambda seed: _normal(seed, 12, 6))


CASES = {
    f.__name__: f for f in (mlp, convolution, embedding, behind, sequence_first, positions, coupled)
}


def build(name: str) -> Case:
    """The case called `name`, in float64, the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        case = CASES[name]()
    case.model.double()
    return case


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
