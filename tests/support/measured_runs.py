"""Short training runs to compare bit for bit: the same run with and without FLeRM."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer


class ResMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input = nn.Linear(8, 16)
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.readout = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.input(x)
        for block in self.blocks:
            x = x + torch.relu(block(x))
        return self.readout(x)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unsqueeze(1) for part in self.qkv(self.norm(x)).chunk(3, -1))
        x = x + self.dropout(
            self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1))
        )
        return x + self.dropout(self.down(F.gelu(self.up(x))))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(13, 8)
        self.layers = nn.ModuleList(Block(8) for _ in range(2))
        self.readout = nn.Linear(8, 13, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.readout(x)


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 4, 3)
        self.last = nn.Linear(4 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)), inplace=True)
        return self.last(F.relu(self.second(x)).flatten(1))


def vectors() -> Tensor:
    return torch.randn(12, 8)


def tokens() -> Tensor:
    return torch.randint(0, 13, (6, 7))


def images() -> Tensor:
    return torch.randn(10, 2, 6, 6)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "resmlp": (ResMLP, vectors),
    "decoder": (Decoder, tokens),
    "convnet": (ConvNet, images),
}


UNIT_TARGETS = dict.fromkeys(dict(ResMLP().named_parameters()), 1.0)
"""Target 1.0 for every tensor of the model called resmlp."""


@dataclass
class Trace:
    """What a run leaves: losses, and everything else as plain values and tensors."""

    losses: list[float] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)


def fresh(name: str) -> tuple[nn.Module, list[Tensor]]:
    """The model called `name` and eight training batches, the same every time.

    Seeds every global generator.
    """
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    make, batch = MODELS[name]
    model = make()
    return model, [batch() for _ in range(8)]


def loss_of(outputs: Tensor) -> Tensor:
    return F.cross_entropy(
        outputs.reshape(-1, outputs.shape[-1]), torch.arange(outputs[..., 0].numel()) % 5
    )


def leave(trace: Trace, model: nn.Module, *optimizers: Optimizer) -> Trace:
    """Adds weights, buffers, gradients, optimiser state and all generators' states to `trace`."""
    trace.state["model"] = {name: value.clone() for name, value in model.state_dict().items()}
    trace.state["grad"] = {
        n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()
    }
    trace.state["optimizers"] = [each.state_dict() for each in optimizers]
    trace.state["training"] = [module.training for module in model.modules()]
    trace.state["random"] = [
        torch.get_rng_state(),
        np.random.get_state()[1].copy(),
        random.getstate(),
    ]
    return trace


def same(a: Any, b: Any) -> bool:
    """Whether two traces are equal, tensors bit for bit."""
    if isinstance(a, Trace):
        return a.losses == b.losses and same(a.state, b.state)
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def trained(model: nn.Module, optimizer: Optimizer, batches: Iterable[Any]) -> list[float]:
    """The losses of a plain loop over `batches`, one step each."""
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        loss = loss_of(model(batch))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def probe(width: int = 8) -> list[Tensor]:
    """Eight probe batches [32, width] for the model called resmlp, the same every time."""
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(32, width, generator=generator) for _ in range(8)]


def probe_stream() -> Iterator[Tensor]:
    """Probe batches as those of `probe`, without end."""
    generator = torch.Generator().manual_seed(11)
    return (torch.randn(32, 8, generator=generator) for _ in itertools.count())


def backward(model: nn.Module, batch: Tensor) -> float:
    """The loss of `batch`, whose gradients are left in the model."""
    model.zero_grad()
    loss = loss_of(model(batch))
    loss.backward()
    return loss.item()


def step(model: nn.Module, optimizer: Optimizer, batch: Tensor) -> float:
    """One training step; returns its loss."""
    loss = backward(model, batch)
    optimizer.step()
    return loss
