"""What a training script of the tests is, and what its runs are compared by."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from flerm_client import FLeRM

STEPS, HALF = 6, 3
"""Optimiser steps of a whole run, and before the checkpoint."""
MATCHED = 3
"""The step at which a matched run is matched."""


@dataclass(frozen=True)
class Run:
    """One training: how a script is called.

    folder: where the script keeps its checkpoint; a resumed run finds the first half's there.
    record: whether FLeRM is attached. targets: the FSLRs by tensor that the run is then matched to;
    None: the run is recorded. stop: whether the run ends at the checkpoint. resume: whether the run
    begins at the checkpoint.
    """

    folder: Path
    record: bool = False
    targets: Mapping[str, float] | None = None
    stop: bool = False
    resume: bool = False

    @property
    def steps(self) -> int:
        """The step that the run ends after."""
        return HALF if self.stop else STEPS

    @property
    def mode(self) -> str:
        """How FLeRM is attached."""
        return "record" if self.targets is None else "match"

    @property
    def attach(self) -> Callable[..., FLeRM]:
        """`FLeRM.record` or `FLeRM.match`."""
        found: Callable[..., FLeRM] = getattr(FLeRM, self.mode)
        return found

    @property
    def keywords(self) -> dict[str, Any]:
        """The keywords of `attach` that are the same in all scripts."""
        if self.targets is None:
            return {"family": "scripts", "every": 2, "warmup": 2}
        matched = {"targets": self.targets, "start": MATCHED, "record_every": 2}
        return {"family": "scripts", "warmup": 2, **matched}


@dataclass(frozen=True)
class Trained:
    """What came out: losses by step, weights at the end, and the FLeRM that was attached."""

    losses: list[float]
    weights: dict[str, Tensor]
    flerm: FLeRM | None = None


Script = Callable[[Run], Trained]


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's weights, gathered where they are sharded."""
    return {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for name, p in model.named_parameters()
    }


def world() -> tuple[int, int]:
    """This rank, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def own(seed: int) -> int:
    """`seed` of this rank."""
    return seed + 1000 * world()[0]


def own_file(folder: Path, name: str) -> Path:
    """The file `name` of this rank."""
    return folder / f"{world()[0]}-{name}"


def replicated(model: nn.Module) -> nn.Module:
    """What a loop calls for its forward: the model, in DDP where there are several ranks."""
    return DistributedDataParallel(model) if dist.is_initialized() else model


def text(count: int, length: int, vocabulary: int, seed: int) -> Tensor:
    """Token ids [count, length] in which each token says something about the next."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(1, 4, (count, length), generator=generator)
    return steps.cumsum(1) % vocabulary


def targets_of(recorded: Trained) -> dict[str, float]:
    """A quarter of each tensor's last FSLR in a recorded run."""
    assert recorded.flerm is not None
    rows = recorded.flerm.trajectory
    columns = dict(zip(rows.names, rows.values.T, strict=True))
    known = {name: columns[name][np.isfinite(columns[name])] for name in recorded.flerm.multipliers}
    return {name: float(values[-1]) / 4 for name, values in known.items() if len(values)}


def assert_matched(plain: Trained, matched: Trained, targets: Mapping[str, float]) -> None:
    """The losses show the match from the step after it, and every multiplier is what it should be.

    A multiplier is the target over the measured FSLR, to a thirty-second of an octave.
    """
    assert matched.losses[:MATCHED] == plain.losses[:MATCHED]
    assert matched.losses[MATCHED:] != plain.losses[MATCHED:]
    flerm = matched.flerm
    assert flerm is not None
    measured = {name: value for name, value in flerm.matched_fslr.items() if name in targets}
    assert measured
    for name, value in measured.items():
        m = flerm.multipliers[name]
        exact = abs(math.log2(m * value / targets[name])) <= 1 / 32 + 1e-6
        assert exact or (m == 1.0 and value < 1e-4 * statistics.median(measured.values())), name
