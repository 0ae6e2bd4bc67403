"""A model with two optimisers, and the batches of each rank, for data parallelism by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

STEPS = 3


class Branched(nn.Module):
    """A network, and a branch that is left out of step 0. The loop sets `step`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))
        self.late = nn.Linear(6, 4)
        self.step = 0

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layers(x)
        return outputs + self.late(x) if self.step else outputs


def model_and_optimizers() -> tuple[Branched, list[Optimizer]]:
    """Muon for the matrices, AdamW for all else."""
    torch.manual_seed(0)
    model = Branched()
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    return model, [Muon(matrices, 1e-2), AdamW(vectors, 1e-3)]


def batch_of(step: int, rank: int) -> Tensor:
    """The training batch [8, 6] of a rank at a step."""
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(10 * step + rank))


def probe_of_rank(rank: int) -> list[Tensor]:
    """The one probe batch [8, 6] of a rank."""
    return [torch.randn(8, 6, generator=torch.Generator().manual_seed(1000 + rank))]


def targets() -> dict[str, float]:
    return {name: 2.0 for name, _ in model_and_optimizers()[0].named_parameters()}
