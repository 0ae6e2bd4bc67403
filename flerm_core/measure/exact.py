"""`exact`: no Monte Carlo. J·ΔW_ℓ by forward-mode differentiation, tensor by tensor (Eq. 1 and 2 as they stand)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flerm_core.measure.estimator import Estimator, Output, Subject
from flerm_core.measure.forward import derivative
from flerm_core.measure.projection import as_output
from flerm_core.measure.untouched import RandomState
from flerm_core.measure.update import Update


class _Function(nn.Module):
    """`output(model, ·)` as a module, so that its parameters can be given from outside."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.model = subject.model
        self._output: Output = subject.output

    def forward(self, batch: Any) -> Any:
        return self._output(self.model, batch)


class Exact(Estimator):
    """Costs one forward with tangents per tensor and role, whatever the number of draws of the others: for few tensors, or
    as the judge.

    A stochastic model (dropout) is differentiated for one and the same draw of its masks.
    """

    name = "exact"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._function = _Function(subject)
        self._rows = {name: (name,) for name in subject.parameters} | dict(subject.roles)

    @property
    def columns(self) -> int:
        """One per tensor and role."""
        return len(self._rows)

    def draw(self, batch: Any, update: Update, generator: torch.Generator) -> tuple[Tensor, int]:
        """(1/NK) Σ (Δ_ℓ f_nk)² of every tensor and role in turn."""
        places = {id(p): f"model.{name}" for name, p in self.subject.model.named_parameters()}
        masks = RandomState()
        squares: list[Tensor] = []
        count = 0
        for members in self._rows.values():
            masks.restore()
            changes = {places[id(self.subject.parameters[name])]: update.change(name) for name in members}
            outputs, moved = derivative(self._function, changes, (batch,), {}, lambda result: [as_output(result)])
            squares.append(moved[0].square().mean(dtype=torch.float64))
            count = outputs[0].numel()
        return torch.stack(squares), count

    def fslrs(self, mean: NDArray[np.float64]) -> dict[str, float]:
        """The root of each mean."""
        return dict(zip(self._rows, np.sqrt(mean).tolist(), strict=True))
