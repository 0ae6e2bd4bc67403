"""Initial weights that depend on the run's seed and the tensor's name only.

Each tensor has a random generator of its own. A model with more blocks or one wider layer therefore
has the same initial values in all other tensors. The global random state is neither read nor
advanced.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

LINEAR, RELU = 1.0, 2.0
"""The variance of He's initialisation times fan-in: of weights whose inputs come from no
non-linearity, and of weights whose inputs come from a ReLU."""


def generator(seed: int, name: str) -> torch.Generator:
    """A generator on the CPU whose state depends on `seed` and `name` alone.

    seed: the run's seed.
    name: what is drawn, such as a tensor's name.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))


@torch.no_grad()
def normal(tensor: Tensor, name: str, seed: int, std: float) -> None:
    """Fills `tensor` in place with independent draws of N(0, std²) from `generator(seed, name)`."""
    tensor.copy_(
        torch.randn(tensor.shape, generator=generator(seed, name), dtype=tensor.dtype) * std
    )


def he_normal(weight: Tensor, name: str, seed: int, gain: float, scale: float = 1.0) -> None:
    """Fills `weight` [out, in] in place with draws of N(0, scale² · gain / in).

    This is He's (Kaiming) initialisation by fan-in (Appendix A), times `scale`.

    weight: the tensor.
    name: the tensor's name.
    seed: the run's seed.
    gain: `LINEAR` or `RELU`.
    scale: factor on the standard deviation.
    """
    normal(weight, name, seed, scale * math.sqrt(gain / weight.shape[1]))
