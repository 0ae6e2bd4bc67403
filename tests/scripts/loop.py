"""What a training script of the tests is, and what its runs are compared by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from flerm_core.trajectory import Trajectory

STEPS, HALF = 6, 3
"""Optimiser steps of a whole run, and before the checkpoint."""
RECORDING = {"family": "scripts", "every": 2, "warmup": 2}


@dataclass(frozen=True)
class Run:
    """One training: how a script is called.

    folder: where the script keeps its checkpoint; a resumed run finds the first half's there.
    record: whether FLeRM records the run. stop: whether the run ends at the checkpoint.
    resume: whether the run begins at the checkpoint.
    """

    folder: Path
    record: bool = False
    stop: bool = False
    resume: bool = False

    @property
    def steps(self) -> int:
        """The step that the run ends after."""
        return HALF if self.stop else STEPS


@dataclass(frozen=True)
class Trained:
    """What came out: losses by step, weights at the end, and the recording."""

    losses: list[float]
    weights: dict[str, Tensor]
    trajectory: Trajectory | None = None


Script = Callable[[Run], Trained]


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's weights."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def text(count: int, length: int, vocabulary: int, seed: int) -> Tensor:
    """Token ids [count, length] in which each token says something about the next."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(1, 4, (count, length), generator=generator)
    return steps.cumsum(1) % vocabulary
