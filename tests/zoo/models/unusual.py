"""Modules written to be hard: loops, scatters, weights that are outputs, state in odd places."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from tests.zoo.architecture import VOCABULARY, Architecture, plain, tokens

INPUTS, OUTPUTS = 12, 4


def rows(generator: torch.Generator) -> Tensor:
    """Vectors [8, inputs]."""
    return torch.randn(8, INPUTS, generator=generator)


class StateSpace(nn.Module):
    """A selective scan, step by step: decay and step size depend on the token (as Mamba)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        size = 8 * width
        self.embed = nn.Embedding(VOCABULARY, size)
        self.a_log, self.skip = nn.Parameter(torch.rand(size, 4)), nn.Parameter(torch.ones(size))
        self.to_b, self.to_c, self.to_dt = (
            nn.Linear(size, 4),
            nn.Linear(size, 4),
            nn.Linear(size, 1),
        )
        self.readout = nn.Linear(size, VOCABULARY)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        b, c = self.to_b(h), self.to_c(h)
        # Read past its module, as Mamba's kernels do.
        step = F.softplus(h @ self.to_dt.weight.T + self.to_dt.bias)
        state, found = h.new_zeros(len(x), h.shape[-1], 4), []
        for t in range(x.shape[1]):
            decay = torch.exp(-step[:, t, :, None] * self.a_log.exp())
            state = decay * state + (step[:, t] * h[:, t])[..., None] * b[:, t, None]
            found.append((state * c[:, t, None]).sum(-1) + self.skip * h[:, t])
        result: Tensor = self.readout(torch.stack(found, 1))
        return result


class GraphNet(nn.Module):
    """Messages along edges, added up at nodes by index_add_ in place; a graph an example."""

    NODES = 6

    def __init__(self, width: int) -> None:
        super().__init__()
        size = 8 * width
        self.input = nn.Linear(2, size)
        self.message, self.update = nn.Linear(2 * size, size), nn.GRUCell(size, size)
        self.readout = nn.Linear(size, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        examples = len(x)
        nodes = torch.arange(examples * self.NODES)
        source = nodes
        target = (nodes + 1) % self.NODES + nodes // self.NODES * self.NODES
        h = torch.tanh(self.input(x.reshape(-1, 2)))
        for _ in range(3):
            sent = torch.relu(self.message(torch.cat([h[source], h[target]], -1)))
            received = torch.zeros_like(h).index_add_(0, target, sent)
            h = self.update(received, h)
        pooled = torch.zeros(examples, h.shape[-1], dtype=h.dtype)
        pooled = pooled.scatter_add(0, (nodes // self.NODES)[:, None].expand_as(h), h)
        found: Tensor = self.readout(pooled)
        return found


class HyperNetwork(nn.Module):
    """The weights of a layer are the outputs of another, one set an example."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.size = 6 * width
        self.code = nn.Linear(INPUTS, 5)
        self.to_weight = nn.Linear(5, self.size * INPUTS)
        self.readout = nn.Linear(self.size, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.to_weight(torch.tanh(self.code(x))).reshape(len(x), self.size, INPUTS)
        found: Tensor = self.readout(torch.tanh(torch.einsum("nsi,ni->ns", weight, x)))
        return found


class SharedHyperNetwork(nn.Module):
    """One set of weights for all examples is computed from a learnt code."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.size = 6 * width
        self.code = nn.Parameter(torch.randn(5))
        self.to_weight = nn.Linear(5, self.size * INPUTS)
        self.readout = nn.Linear(self.size, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.to_weight(self.code).reshape(self.size, INPUTS)
        found: Tensor = self.readout(torch.tanh(F.linear(x, weight)))
        return found


class Capsules(nn.Module):
    """Routing by agreement, three rounds."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.parts, self.size = 4, 3 * width
        self.votes = nn.Parameter(0.3 * torch.randn(self.parts, OUTPUTS, 3, self.size))
        self.input = nn.Linear(INPUTS, self.parts * 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.tanh(self.input(x)).reshape(len(x), self.parts, 3)
        votes = torch.einsum("npi,pois->npos", parts, self.votes)
        agreement = torch.zeros_like(votes[..., 0])
        for _ in range(2):
            mean = (agreement.softmax(-1)[..., None] * votes).sum(1, keepdim=True)
            agreement = agreement + (mean * votes).sum(-1)
        found = (agreement.softmax(-1)[..., None] * votes).sum(1)
        return found.square().sum(-1)


class Flow(nn.Module):
    """A field that is integrated by steps of Runge and Kutta: one module, sixteen calls."""

    class Field(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.first, self.time = nn.Linear(INPUTS, size), nn.Parameter(torch.randn(size))
            self.second = nn.Linear(size, INPUTS)

        def forward(self, t: float, h: Tensor) -> Tensor:
            found: Tensor = self.second(torch.tanh(self.first(h) + t * self.time))
            return found

    def __init__(self, width: int) -> None:
        super().__init__()
        self.field, self.readout = Flow.Field(8 * width), nn.Linear(INPUTS, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        step = 0.25
        for number in range(4):
            t = step * number
            k1 = self.field(t, x)
            k2 = self.field(t + step / 2, x + step / 2 * k1)
            k3 = self.field(t + step / 2, x + step / 2 * k2)
            k4 = self.field(t + step, x + step * k3)
            x = x + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        found: Tensor = self.readout(x)
        return found


class Symmetric(nn.Module):
    """A parametrization: the upper triangle of a matrix stands for both."""

    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).transpose(-1, -2)


def parametrized(width: int) -> nn.Module:
    """Two parametrizations on top of each other."""
    size = INPUTS * width
    middle = nn.Linear(size, size)
    parametrize.register_parametrization(middle, "weight", Symmetric())
    parametrize.register_parametrization(middle, "weight", Scaled(size))
    return nn.Sequential(
        nn.Linear(INPUTS, size), nn.Tanh(), middle, nn.Tanh(), nn.Linear(size, OUTPUTS)
    )


class Scaled(nn.Module):
    """A parametrization with a weight of its own."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


class Functional(nn.Module):
    """Calls its inner module by torch.func with weights that it has changed (an inner step)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Linear(INPUTS, 8 * width), nn.Tanh(), nn.Linear(8 * width, OUTPUTS)
        )
        self.rates = nn.Parameter(torch.full((4,), 0.9))

    def forward(self, x: Tensor) -> Tensor:
        own = dict(self.inner.named_parameters())
        moved = {name: rate * p for (name, p), rate in zip(own.items(), self.rates, strict=True)}
        found: Tensor = torch.func.functional_call(self.inner, moved, (x,))
        return found + self.inner(x)


class _RoundedProduct(torch.autograd.Function):
    """x Wᵀ with W rounded to eighths, and a straight-through gradient, saved for both inputs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.T @ x


class Quantised(nn.Module):
    """A frozen matrix of 8-bit integers, an adapter of low rank, and an autograd function twice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        size = 8 * width
        self.register_buffer("integers", torch.randint(-127, 128, (size, INPUTS), dtype=torch.int8))
        self.register_buffer("scale", torch.rand(size) / 127)
        self.down = nn.Parameter(0.3 * torch.randn(2, INPUTS))
        self.up = nn.Parameter(0.3 * torch.randn(size, 2))
        self.head = nn.Parameter(0.3 * torch.randn(size, size))
        self.readout = nn.Linear(size, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.integers.to(x.dtype) * self.scale[:, None]
        h = torch.tanh(x @ weight.T + x @ self.down.T @ self.up.T)
        for _ in range(2):
            h = torch.tanh(_RoundedProduct.apply(h, self.head))  # type: ignore[no-untyped-call]
        found: Tensor = self.readout(h)
        return found


class InPlace(nn.Module):
    """Writes to what its layers return and to a tensor that it fills row by row."""

    def __init__(self, width: int) -> None:
        super().__init__()
        size = 8 * width
        self.first, self.norm = nn.Linear(INPUTS, size), nn.LayerNorm(size)
        self.gain, self.readout = nn.Parameter(torch.ones(size)), nn.Linear(size, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu_(self.first(x))
        h = self.norm(h).mul_(self.gain).add_(0.1)
        filled = torch.empty_like(h)
        filled[:, ::2] = h[:, ::2]
        filled[:, 1::2] = h[:, 1::2].sin()
        found: Tensor = self.readout(filled)
        return found


class Jagged(nn.Module):
    """Sequences of different lengths, one behind the other, without padding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        size = 8 * width
        self.embed = nn.Embedding(VOCABULARY, size)
        self.mix, self.readout = nn.Linear(size, size), nn.Linear(size, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        lengths = 3 + x[:, 0] % 6
        own = torch.arange(x.shape[1]) < lengths[:, None]
        of_example = torch.arange(len(x)).repeat_interleave(lengths)
        h = torch.tanh(self.mix(self.embed(x[own])))
        pooled = torch.zeros(len(x), h.shape[-1], dtype=h.dtype).index_add(0, of_example, h)
        found: Tensor = self.readout(pooled / lengths[:, None])
        return found


class SparseAttention(nn.Module):
    """Each query attends to its two best keys, chosen by topk and gathered."""

    def __init__(self, width: int) -> None:
        super().__init__()
        size = 8 * width
        self.embed = nn.Embedding(VOCABULARY, size)
        self.q, self.k, self.v = (nn.Linear(size, size) for _ in range(3))
        self.readout = nn.Linear(size, VOCABULARY)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        scores = self.q(h) @ self.k(h).transpose(1, 2) / h.shape[-1] ** 0.5
        best, places = scores.topk(2, -1)
        values = self.v(h).unsqueeze(1).expand(-1, x.shape[1], -1, -1)
        chosen = values.gather(2, places[..., None].expand(-1, -1, -1, h.shape[-1]))
        found: Tensor = self.readout(h + (best.softmax(-1)[..., None] * chosen).sum(2))
        return found


class Looped(nn.Module):
    """One block for all layers, until most tokens have halted: as many rounds as a batch needs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        size = 8 * width
        self.embed, self.block = nn.Embedding(VOCABULARY, size), nn.Linear(size, size)
        self.halt, self.readout = nn.Linear(size, 1), nn.Linear(size, VOCABULARY)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        left, found, rounds = torch.ones_like(h[..., :1]), torch.zeros_like(h), 0
        while rounds < 2 + int(x[0, 0]) % 4:
            h = h + torch.tanh(self.block(h))
            stop = torch.sigmoid(self.halt(h))
            found = found + left * stop * h
            left = left * (1 - stop)
            rounds += 1
        result: Tensor = self.readout(found + left * h)
        return result


UNUSUAL: Mapping[str, tuple[Callable[[int], nn.Module], Callable[[torch.Generator], Any]]] = {
    "selective state space": (StateSpace, tokens),
    "graph net, scattered messages": (GraphNet, rows),
    "hypernetwork, weights by example": (HyperNetwork, rows),
    "hypernetwork, shared weights": (SharedHyperNetwork, rows),
    "capsules": (Capsules, rows),
    "neural ODE": (Flow, rows),
    "parametrizations, two": (parametrized, rows),
    "functional_call inside forward": (Functional, rows),
    "8-bit weights with an adapter": (Quantised, rows),
    "in-place operations": (InPlace, rows),
    "sequences without padding": (Jagged, tokens),
    "sparse attention by topk": (SparseAttention, tokens),
    "one block, rounds by the batch": (Looped, tokens),
}


def architectures() -> list[Architecture]:
    """All that this file holds."""

    def build(make: Callable[[int], nn.Module]) -> Callable[[int, int], nn.Module]:
        return lambda width, depth: make(width)

    return [
        Architecture(
            name, "torch", build(make), batch, plain, scales=("width",),
            couples_examples=make is Looped,
        )
        for name, (make, batch) in UNUSUAL.items()
    ]  # fmt: skip
