"""Initial weights that depend on the run's seed and the tensor's name only.

Each tensor has a generator of its own. Adding blocks or widening a layer therefore leaves the draws
of all other tensors as they were, so that models of a family start as alike as they can. No rank
and no run reads or advances the global random state.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

LINEAR, RELU = 1.0, 2.0
"""He et al.'s factor on the variance 1/fan_in, by the non-linearity in front of the weights."""


def generator(seed: int, name: str) -> torch.Generator:
    """A generator on the CPU for the draw called `name` of a run with `seed`."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))


@torch.no_grad()
def normal(tensor: Tensor, name: str, seed: int, std: float) -> None:
    """Fills `tensor` with independent N(0, std²) draws."""
    tensor.copy_(
        torch.randn(tensor.shape, generator=generator(seed, name), dtype=tensor.dtype) * std
    )


def he_normal(weight: Tensor, name: str, seed: int, gain: float, scale: float = 1.0) -> None:
    """Fills `weight` [out, in] with draws of N(0, scale² · gain / in).

    This is Kaiming initialisation by fan-in (Appendix A).
    """
    normal(weight, name, seed, scale * math.sqrt(gain / weight.shape[1]))
