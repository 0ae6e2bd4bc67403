"""The decoder of the GPU's tests, and its training with and without FLeRM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flerm_client import FLeRM


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], self.heads, -1)
        q, k, v = (p.view(shape).transpose(1, 2) for p in self.qkv(self.norm1(x)).chunk(3, -1))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(x.shape))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Decoder(nn.Module):
    """GPT-2's shape: 124 M parameters with its widths, of which the readout shares the embedding's.

    Its outputs are those of the last position, so that they stay small.
    """

    def __init__(self, width: int = 32, layers: int = 2, vocabulary: int = 101) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(1024, width)
        self.layers = nn.ModuleList(Block(width, max(1, width // 64)) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for layer in self.layers:
            x = layer(x)
        return F.linear(self.norm(x), self.embed.weight)


def tokens(device: torch.device, count: int = 8, length: int = 16, vocabulary: int = 101) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, vocabulary, (count, length), generator=generator).to(device)


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    return F.cross_entropy(model(batch)[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten())


def train(
    device: torch.device,
    *,
    record: bool,
    optimizer: Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer] | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    autocast: torch.dtype | None = None,
    scaler: torch.amp.GradScaler | None = None,
    **options: Any,
) -> tuple[list[float], FLeRM | None]:
    """The losses of six steps, and the FLeRM that recorded them."""
    torch.manual_seed(0)
    model = wrap(Decoder().to(device))
    weights = list(model.parameters())
    made = torch.optim.AdamW(weights, 1e-3) if optimizer is None else optimizer(weights)
    batch, losses, flerm = tokens(device), [], None
    if record:
        flerm = FLeRM.record(
            model, made, probe=[batch[:4]], family="cuda", every=2, warmup=2, **options
        )
    for _ in range(6):
        made.zero_grad()
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            loss = loss_of(model, batch)
        if scaler is None:
            loss.backward()
            made.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(made)
            scaler.update()
        losses.append(loss.item())
    return losses, flerm
