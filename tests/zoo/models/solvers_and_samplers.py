"""Forwards that solve, differentiate, draw, sort or compare, and modules that take no hooks."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.zoo.architecture import VOCABULARY, Architecture, plain, tokens
from tests.zoo.models.unusual import INPUTS, OUTPUTS, rows


class _Between(nn.Module):
    """An input and an output layer; what lies between is `hidden`."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.input, self.readout = nn.Linear(INPUTS, size), nn.Linear(size, OUTPUTS)

    def hidden(self, h: Tensor) -> Tensor:
        return torch.tanh(h)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.readout(self.hidden(self.input(x)))
        return found


class Equilibrium(_Between):
    """A fixed point, found without gradients; gradients are those of one more round."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.again = nn.Linear(size, size)

    def hidden(self, h: Tensor) -> Tensor:
        z = torch.zeros_like(h)
        with torch.no_grad():
            for _ in range(10):
                z = torch.tanh(0.5 * self.again(z) + h)
        return torch.tanh(0.5 * self.again(z) + h)


class Forces(nn.Module):
    """The gradient of an energy with respect to the inputs, as force fields compute it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.input, self.readout = nn.Linear(INPUTS, size), nn.Linear(size, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self.readout(F.softplus(self.input(x))).sum()
            return torch.autograd.grad(energy, x, create_graph=True)[0]


class RandomWeights(_Between):
    """Weights drawn anew in each forward, from a learnt distribution (Bayes by backprop)."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.mean = nn.Parameter(torch.randn(size, size) * 0.3)
        self.spread = nn.Parameter(torch.full((size, size), -2.0))

    def hidden(self, h: Tensor) -> Tensor:
        noise = F.softplus(self.spread) * torch.randn_like(self.mean)
        return torch.tanh(F.linear(h, self.mean + noise))


class Choice(_Between):
    """A code is drawn by Gumbel noise, and passed on hard (straight through)."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.codes = nn.Embedding(size, size)

    def hidden(self, h: Tensor) -> Tensor:
        return F.gumbel_softmax(h, hard=True) @ self.codes.weight


class Ensemble(_Between):
    """Three layers at once, by torch.vmap."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.members = nn.Parameter(torch.randn(3, size, size) * 0.3)

    def hidden(self, h: Tensor) -> Tensor:
        found: Tensor = torch.vmap(lambda member: torch.tanh(h @ member))(self.members)
        return found.mean(0)


class Sorted(_Between):
    """A batch that is sorted by a feature, run through a layer, and put back in order."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.layer = nn.Linear(size, size)

    def hidden(self, h: Tensor) -> Tensor:
        order = h[:, 0].argsort()
        found: Tensor = torch.relu(self.layer(h[order]))
        return found[order.argsort()]


class Checkpointed(_Between):
    """Blocks under re-entrant activation checkpointing, with dropout."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(size, size), nn.Dropout(0.2), nn.GELU()) for _ in range(2)
        )

    def hidden(self, h: Tensor) -> Tensor:
        for block in self.blocks:
            h = h + checkpoint(block, h, use_reentrant=True)
        return h


class Fourier(nn.Module):
    """Tokens mixed by a Fourier transform (FNet)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.embed, self.layer = nn.Embedding(VOCABULARY, size), nn.Linear(size, size)
        self.readout = nn.Linear(size, VOCABULARY)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = h + torch.fft.fft2(h).real
        found: Tensor = self.readout(h + F.gelu(self.layer(h)))
        return found


class Similarity(nn.Module):
    """Each example against all others of the batch (CLIP)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.left, self.right = (nn.Linear(INPUTS // 2, size) for _ in range(2))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        left, right = F.normalize(self.left(left), dim=-1), F.normalize(self.right(right), dim=-1)
        return left @ right.T * self.scale.exp()


def compiled(size: int) -> nn.Module:
    """A network in a module of torch.jit, and a layer outside of it."""
    inner = nn.Sequential(nn.Linear(INPUTS, size), nn.Tanh())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return nn.Sequential(torch.jit.script(inner), nn.Linear(size, OUTPUTS))


def architectures() -> list[Architecture]:
    """One of each."""

    def made(
        name: str,
        make: Callable[[int], nn.Module],
        batch: Callable[[torch.Generator], Tensor] = rows,
        **options: bool,
    ) -> Architecture:
        return Architecture(
            name, "torch", lambda width, _: make(8 * width), batch, plain, ("width",), **options
        )

    return [
        made("deep equilibrium", Equilibrium),
        made("forces by autograd.grad", Forces),
        made("weights drawn in each forward", RandomWeights, draws_numbers=True),
        made("Gumbel softmax, straight through", Choice, draws_numbers=True),
        made("ensemble by vmap", Ensemble),
        made("batch sorted on the way", Sorted),
        made("re-entrant checkpointing", Checkpointed, draws_numbers=True),
        made("Fourier mixing", Fourier, tokens),
        made("similarities within a batch", Similarity, couples_examples=True),
        made("module of torch.jit", compiled),
    ]
