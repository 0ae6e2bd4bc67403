"""Modules that have no closed form, no forward mode, or state in unusual places."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.spectral_norm import spectral_norm
from torch.nn.utils.weight_norm import weight_norm


class _Scale(torch.autograd.Function):
    """As fused norms are written: without `jvp`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x * weight.tanh()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        inner = (gradient * x).reshape(-1, len(weight)).sum(0)
        return gradient * weight.tanh(), inner * (1 - weight.tanh() ** 2)


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12))

    def forward(self, x: Tensor) -> Tensor:
        return _Scale.apply(x, self.weight)  # type: ignore[no-any-return, no-untyped-call]


@dataclass
class Parts:
    """What a module may return."""

    first: Tensor
    rest: dict[str, Tensor]


class InParts(nn.Module):
    """Returns a dataclass with a dictionary in it, and counts its calls in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.fused, self.scale = Fused(), nn.Parameter(torch.randn(12))
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Parts:
        self.seen.append(len(x))
        return Parts(self.fused(x) * self.scale, {"twice": 2 * x * self.scale})


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.readout = InParts(), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.inner(x)
        return self.readout(parts.first + parts.rest["twice"])


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.readout = nn.LSTM(12, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.rnn(x.unsqueeze(1).expand(-1, 3, -1))[0])


class Bags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.readout = nn.EmbeddingBag(7, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.bag((x * 4).long() % 7))


class TiedBias(nn.Module):
    """A bias that a head and its decoder hold, as in BERT."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder, self.bias = nn.Linear(12, 4), nn.Parameter(torch.zeros(4))
            self.decoder.bias = self.bias

        def forward(self, x: Tensor) -> Tensor:
            return self.decoder(x) + self.bias.tanh()

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(12, 12), TiedBias.Head()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).tanh())


class Cache:
    """Keys of earlier calls, which a forward appends to, as transformers' DynamicCache."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.of = self  # a cycle


class Cached(nn.Module):
    """Attention to all that the cache holds; its layers share one cache."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.key, self.sink = nn.Linear(12, 12), nn.Parameter(torch.randn(12))

        def forward(self, x: Tensor, *, cache: Cache) -> Tensor:
            cache.of.keys.append(self.key(x))
            keys = torch.stack([*cache.keys, self.sink.expand_as(x)])
            return torch.softmax((keys * x).sum(-1, keepdim=True), 0).mul(keys).sum(0)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Cached.Layer() for _ in range(6))
        self.readout = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        cache = Cache()
        for layer in self.layers:
            x = x + layer(x, cache=cache)
        return self.readout(x)


class Recursive(nn.Module):
    """A module that calls itself, as a tree of parts does."""

    class Node(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.shift = nn.Parameter(torch.randn(12)), nn.Parameter(torch.randn(12))

        def forward(self, x: Tensor, depth: int) -> Tensor:
            below = self(x.roll(1, -1), depth - 1) if depth else x
            return torch.tanh(self.scale * below + self.shift)

    def __init__(self) -> None:
        super().__init__()
        self.node, self.readout = Recursive.Node(), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.node(x, 2))


class Router(nn.Module):
    """Returns logits, scores that are computed from these, and the scores once more."""

    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 12))

        def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            scores = (logits := x @ self.weight.T).softmax(-1)
            return logits, {"scores": scores, "again": scores}

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.readout = Router.Gate(), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        logits, found = self.gate(x)
        mixed = self.readout(x).reshape(-1, 3, 4) * found["scores"].unsqueeze(-1)
        return mixed.sum(1) + logits.square().sum(-1, keepdim=True) * found["again"][:, :1]


class Spoiled(nn.Module):
    """Its inner module can be differentiated in no way; the module around it can."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(12))

        def forward(self, x: Tensor) -> Tensor:
            if not isinstance(self.weight, nn.Parameter):
                raise RuntimeError("a kernel for parameters only")
            return x * self.weight

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Spoiled.Inner()

        def forward(self, x: Tensor) -> Tensor:
            weight = self.inner.weight
            whole = isinstance(weight, nn.Parameter)
            return self.inner(x) if whole else x * weight

    def __init__(self) -> None:
        super().__init__()
        self.outer, self.readout = Spoiled.Outer(), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.outer(x))


def _normed(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(norm(nn.Linear(12, 12)), nn.Tanh(), norm(nn.Linear(12, 4)))


KINDS: Mapping[str, Callable[[], nn.Module]] = {
    "custom function": lambda: nn.Sequential(nn.Linear(12, 12), Fused(), nn.Linear(12, 4)),
    "containers": Joined,
    "LSTM": Recurrent,
    "EmbeddingBag": Bags,
    "tied bias": TiedBias,
    "next module up": Spoiled,
    "filled cache": Cached,
    "recursion": Recursive,
    "outputs of outputs": Router,
    "weight norm, hook": lambda: _normed(weight_norm),
    "weight norm, parametrization": lambda: _normed(parametrizations.weight_norm),
    "spectral norm, hook": lambda: _normed(spectral_norm),
    "spectral norm, parametrization": lambda: _normed(parametrizations.spectral_norm),
    "orthogonal": lambda: nn.Sequential(
        parametrizations.orthogonal(nn.Linear(12, 12)), nn.Tanh(), nn.Linear(12, 4)
    ),
    "pruned": lambda: _normed(lambda m: prune.random_unstructured(m, "weight", 0.3)),
}
