"""Holds the norms of weights through a training, to see what their growth does to a learning rate.

A weight that a norm follows has the same effect at every size, and its gradient is orthogonal to
it. Steps therefore let it grow, and a bigger weight turns less by the same step: training anneals
itself (arXiv 1706.05350).
"""

from __future__ import annotations

import torch
from torch import nn

from flerm_experiments.workloads.parametrization import is_block_matrix


class HeldNorms:
    """The matrices of a model's repeated blocks, and the Frobenius norms that they are held at."""

    def __init__(self, model: nn.Module) -> None:
        self._matrices = [
            parameter
            for name, parameter in model.named_parameters()
            if is_block_matrix(name, parameter)
        ]
        self._norms = [matrix.detach().norm() for matrix in self._matrices]

    @torch.no_grad()
    def restore(self) -> None:
        """Scales each matrix back to the norm that it had when this object was made."""
        for matrix, norm in zip(self._matrices, self._norms, strict=True):
            matrix.mul_(norm / matrix.norm())
