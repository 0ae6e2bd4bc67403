"""Runs that are recorded in a folder registry, and dry runs against these recordings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from flerm_client import FLeRM


@dataclass
class Config:
    width: int = 16
    ratio: float = float("inf")
    layer: type = nn.Linear


class Model(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.config = Config(width)
        self.up = nn.Linear(8, width)
        self.down = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))


def probe() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(16, 8, generator=generator) for _ in range(4)]


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(8, 8)).square().mean().backward()
    optimizer.step()


def record(folder, seed: int = 0, **settings) -> None:
    """Two steps of a small model, recorded in the folder registry `folder` as family f."""
    torch.manual_seed(seed)
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    flerm = FLeRM.record(
        model,
        optimizer,
        probe=probe(),
        family="f",
        registry=folder.as_uri(),
        every=1,
        seed=seed,
        **settings,
    )
    step(model, optimizer)
    step(model, optimizer)
    flerm.close()


def dry_run(folder, optimizer: type[torch.optim.Optimizer] = torch.optim.Adam, **settings) -> None:
    """A dry run of a wider model against the recordings in `folder`; it ends the program."""
    torch.manual_seed(7)
    model = Model(64)
    stepped = optimizer(model.parameters(), 1e-3)
    FLeRM.match(
        model,
        stepped,
        probe=probe(),
        family="f",
        registry=folder.as_uri(),
        dry_run=True,
        **settings,
    )
    step(model, stepped)
    raise AssertionError("training went on")
