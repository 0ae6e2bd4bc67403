"""Base recordings of the paper's own code (`*.ptnorms`), read as trajectories.

Such a file is a dictionary that `torch.save` wrote: tensor name to a list of FSLRs, one for each
measured step. The paper's code (github.com/edwardmilsom/function-space-learning-rates-paper)
measures by its kronecker estimator at steps 1, 1 + every, … (every is 100 in its scripts), with 40
draws more at the first step, and smooths the FSLRs by a moving average.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flerm_core.errors import InvalidInput
from flerm_core.parameter_bands import bands_of
from flerm_core.parameter_names import canonical_names
from flerm_core.records.recording import EstimatorSettings
from flerm_core.trajectory import Trajectory

_FILE_NAME = re.compile(r"_lr_(?P<lr>[0-9.eE+-]+)(?=_|\.ptnorms$).*?_seed_(?P<seed>\d+)")


@dataclass(frozen=True)
class PaperRecording:
    """A `.ptnorms` file: its FSLRs, and the learning rate and seed that its name tells.

    Both are None where the name has none.
    """

    trajectory: Trajectory
    lr: float | None
    seed: int | None


def read_ptnorms(path: Path, *, every: int = 100) -> PaperRecording:
    """Reads a `.ptnorms` file. Only plain values are read, and no code is run.

    every: steps between measurements.

    Learning rate and seed come from a file name like the paper's (`…_lr_0.001_seed_3.ptnorms`). The
    file has no shapes, so those of the trajectory are empty.

    Raises `InvalidInput` for a file that is not of this form.
    """
    found = _load(path)
    counts = {len(values) for values in found.values()}
    if len(counts) != 1 or counts == {0}:
        raise InvalidInput(
            f"{path.name}: its tensors have {sorted(counts)} measurements; allowed is one number, "
            "the same for all"
        )
    names = canonical_names(found)
    table = np.array(
        [[_as_fslr(path, name, value) for value in values] for name, values in found.items()],
        np.float32,
    ).T
    likely = [(1, 1) if name.split(".")[-1] == "weight" else (1,) for name in names]
    steps = 1 + every * np.arange(len(table))
    trajectory = Trajectory(names, [()] * len(names), steps, table, bands=bands_of(names, likely))
    said = _FILE_NAME.search(path.name)
    return PaperRecording(
        trajectory, float(said["lr"]) if said else None, int(said["seed"]) if said else None
    )


def paper_estimator(every: int) -> EstimatorSettings:
    """The settings by which the paper's scripts measured."""
    return EstimatorSettings(name="kronecker", samples=1, warmup=41, every=every, start=1)


def _load(path: Path) -> dict[str, list[Any]]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InvalidInput(
            f"{path}: not a .ptnorms file ({' '.join(str(error).split())[:120]})"
        ) from error
    if (
        not isinstance(found, Mapping)
        or not found
        or not all(isinstance(values, list) for values in found.values())
    ):
        raise InvalidInput(
            f"{path}: not a .ptnorms file; allowed is a dictionary of tensor names to lists of "
            "FSLRs"
        )
    return {str(name): values for name, values in found.items()}


def _as_fslr(path: Path, name: str, value: Any) -> float:
    try:
        fslr = float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInput(
            f"{path.name}: {name} holds {type(value).__name__}; allowed are numbers"
        ) from error
    if fslr < 0 or math.isinf(fslr):
        raise InvalidInput(
            f"{path.name}: {name} holds {fslr}; allowed are finite numbers from 0, or NaN where "
            "unmeasured"
        )
    return fslr or math.nan  # 0 means that the tensor had no update yet
