"""Estimators from Z = ΔW ⊙ ∂φ/∂W: `kronecker` (Section 3.2, Appendix B), `iid` and `full` (Section 3.1)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flerm_core.errors import InvalidInput
from flerm_core.measure.estimator import Estimator, Subject
from flerm_core.measure.gradients import stream_gradients
from flerm_core.measure.projection import draw_projection
from flerm_core.measure.update import Update


class Kronecker(Estimator):
    """FSLR = √(Π_d E[s_d] / E[s_0]^(D−1)) with s_0 = Σ Z² and s_d = Σ (Σ_{i_d} Z)² (Eq. 28), in the log domain.

    Scalars count as rank 1.

    The rows of the output layer are independent (f_nk depends on row k alone); named, its weight uses Σ_k (Σ_j Z_kj)² and its
    bias Σ_k Z_k², both unbiased.
    """

    name = "kronecker"

    def __init__(self, subject: Subject, *, output_weight: str = "", output_bias: str = "") -> None:
        super().__init__(subject)
        for field, name, rank in (("output_weight", output_weight, 2), ("output_bias", output_bias, 1)):
            if name and (name not in subject.parameters or subject.parameters[name].ndim != rank):
                raise InvalidInput(
                    f"{field}={name!r} is not a measured tensor of rank {rank}; there are: {', '.join(subject.parameters)}"
                )
        self._output_weight, self._output_bias = output_weight, output_bias
        self._slices: dict[str, slice] = {}
        start = 0
        for name, parameter in subject.parameters.items():
            stop = start + max(parameter.ndim, 1) + 1
            self._slices[name] = slice(start, stop)
            start = stop
        self._columns = start

    @property
    def columns(self) -> int:
        """Σ (D_ℓ + 1)."""
        return self._columns

    def draw(self, batch: Any, update: Update, generator: torch.Generator) -> tuple[Tensor, int]:
        """s_0, s_1 … s_D of every tensor in turn."""
        outputs = self.subject.outputs(batch)
        sums = torch.zeros(self._columns, dtype=torch.float64, device=outputs.device)

        def consume(name: str, gradient: Tensor) -> None:
            z = update.change(name).mul_(gradient)
            sums[self._slices[name]] = z_sums(z).to(sums.device)

        stream_gradients(outputs, draw_projection(outputs, generator), self.subject.parameters, consume)
        return sums, outputs.numel()

    def fslrs(self, mean: NDArray[np.float64]) -> dict[str, float]:
        """Eq. 28, tensor by tensor."""
        return {name: self._fslr(name, mean[columns]) for name, columns in self._slices.items()}

    def _fslr(self, name: str, sums: NDArray[np.float64]) -> float:
        total, by_dimension = sums[0], sums[1:]
        if name == self._output_weight:
            return float(np.sqrt(by_dimension[1]))
        if name == self._output_bias or not total > 0.0:
            return float(np.sqrt(total))
        # A sum that cancels exactly leaves log(0) = -inf and so FSLR 0: nothing moved the outputs.
        with np.errstate(divide="ignore"):
            return float(np.exp(0.5 * (np.log(by_dimension).sum() - (len(by_dimension) - 1) * np.log(total))))


class Independent(Kronecker):
    """FSLR = √E[Σ Z²]: all elements of Z independent. Far off where they are not (docs/estimators.md); kept to compare."""

    name = "iid"

    def _fslr(self, name: str, sums: NDArray[np.float64]) -> float:
        return float(np.sqrt(sums[0]))


class Full(Estimator):
    """FSLR = √E[(Σ Z)²] (Eq. 7): unbiased, and noisy; one number of one degree of freedom per draw."""

    name = "full"

    @property
    def columns(self) -> int:
        """One per tensor."""
        return len(self.subject.parameters)

    def draw(self, batch: Any, update: Update, generator: torch.Generator) -> tuple[Tensor, int]:
        """(Δ_ℓφ)² of every tensor in turn (Eq. 4)."""
        outputs = self.subject.outputs(batch)
        squares = torch.zeros(self.columns, dtype=torch.float64, device=outputs.device)
        positions = {name: i for i, name in enumerate(self.subject.parameters)}

        def consume(name: str, gradient: Tensor) -> None:
            squares[positions[name]] = (update.change(name).mul_(gradient)).sum(dtype=torch.float64).square()

        stream_gradients(outputs, draw_projection(outputs, generator), self.subject.parameters, consume)
        return squares, outputs.numel()

    def fslrs(self, mean: NDArray[np.float64]) -> dict[str, float]:
        """The root of each mean."""
        return dict(zip(self.subject.parameters, np.sqrt(mean).tolist(), strict=True))


def z_sums(z: Tensor) -> Tensor:
    """[s_0, s_1, …, s_D] of one Z, float64; a scalar counts as rank 1."""
    z = z.reshape(1) if z.ndim == 0 else z
    sums = [z.square().sum(dtype=torch.float64)]
    sums += [z.sum(dim).square().sum(dtype=torch.float64) for dim in range(z.ndim)]
    return torch.stack(sums)
