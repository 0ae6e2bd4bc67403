"""`example`, the default: a draw gives one sample per example instead of one per batch.

1. φ = Σ_n φ_n, and ω is independent between examples (Eq. 3). So the changes c_n = Δ_ℓφ_n have mean
   0, and E[c_n c_m] = 0 for n ≠ m.
2. FSLR² = E[(Δ_ℓφ)²] = E[(Σ_n c_n)²] (Eq. 7) is therefore E[Σ_n c_n²]: the same quantity from N
   samples, unbiased.
3. c_n comes from the gradients of activations alone (`example_contributions`).

The first draw finds out how the model is observed, and proves on a plain backward that no use of a
tensor was missed (`layout_probe`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flerm_core.measure.estimators.base import Draw, Estimator, OutputLayer
from flerm_core.measure.estimators.example_contributions import ExampleContributions
from flerm_core.measure.estimators.layout_probe import LayoutProbe
from flerm_core.measure.measured_model import MeasuredModel
from flerm_core.measure.output_projection import draw_projection, projection_scale
from flerm_core.measure.update.weight_update import WeightUpdate


class PerExample(Estimator):
    """FSLR = √E[Σ_n c_n²]. Depth groups come without cost: their c is the sum of their members'.

    Where ranks share the work on a batch, each has a part of c. The parts are added up before they
    are squared.
    """

    name = "example"
    measures_depth_groups = True

    def __init__(self, model: MeasuredModel, output_layer: OutputLayer | None = None) -> None:
        super().__init__(model, output_layer)
        self._contributions = ExampleContributions(model)
        self._probe = LayoutProbe(self._contributions)
        # The `requires_grad` flags for which discovery succeeded: on this rank, and on all ranks.
        self._discovered_for: tuple[bool, ...] = ()
        self._agreed_for: tuple[bool, ...] = ()
        self._rediscover = False
        if self._contributions.sharding.is_model_parallel:
            self.reduction = "model_parallel"

    @property
    def n_statistics(self) -> int:
        """One per tensor and depth group."""
        return len(self.model.parameters) + len(self.model.depth_groups)

    @property
    def needs_discovery(self) -> bool:
        """True at first, and again when a tensor was frozen or unfrozen."""
        return self._agreed_for != self._requires_grad()

    @property
    def discovery_uncertain(self) -> bool:
        """Whether gradients that were zero may have hidden the layout of an activation."""
        return self._probe.uncertain

    def end_discovery(self, *, uncertain: bool) -> None:
        """What the last draw found out holds from now on.

        Where it is uncertain on any rank, it holds until the next measurement only.
        """
        self._agreed_for = self._requires_grad()
        self._rediscover = uncertain

    def begin_measurement(self) -> None:
        """Starts a new discovery where the last one was uncertain.

        It was uncertain because of zero gradients, behind which lie unknown layouts, or coupled
        examples. A gradient may be zero for ever, so each set of them gives one new discovery.
        """
        if self._rediscover:
            self._rediscover = False
            self._agreed_for = self._discovered_for = ()

    def _requires_grad(self) -> tuple[bool, ...]:
        return tuple(p.requires_grad for p in self.model.parameters.values())

    def draw(self, batch: Any, update: WeightUpdate, generator: torch.Generator) -> Draw:
        """Σ_n c_n² of every tensor, then of every depth group.

        With scope "model_parallel" this rank's part of c instead, flat [tensors · N]. A rank whose
        batch is empty finds out nothing, and does so on its next draw.
        """
        if self._discovered_for != self._requires_grad():
            discovered = self._probe.discover(batch, update, generator)
            if discovered is None:
                length = 0 if self.reduction == "model_parallel" else self.n_statistics
                device = self.model.device
                return Draw(torch.zeros(length, dtype=torch.float64, device=device), 0)
            contributions, outputs = discovered
            self._discovered_for = self._requires_grad()
        else:
            hooks, outputs = self._contributions.forward(batch)
            direction = draw_projection(outputs, generator)
            contributions = self._contributions.backward(hooks, outputs, direction, update)
        scale = projection_scale(outputs)  # of ∂φ/∂f; a draw is of ω itself
        if self.reduction == "model_parallel":
            return Draw((contributions / scale).reshape(-1), outputs.numel())
        return Draw(self._sums_of_squares(contributions) / scale**2, outputs.numel())

    def reduce_parts(self, partial_sums: Tensor) -> Tensor:
        """Σ_n c_n² of every tensor and depth group."""
        if self.reduction != "model_parallel":
            return partial_sums
        n_tensors = len(self.model.parameters)
        n_examples = len(partial_sums) // n_tensors
        return self._sums_of_squares(partial_sums.reshape(n_tensors, n_examples))

    def _sums_of_squares(self, contributions: Tensor) -> Tensor:
        positions = self._contributions.positions
        groups = [
            contributions[[positions[name] for name in members]].sum(0)
            for members in self.model.depth_groups.values()
        ]
        rows = torch.cat([contributions, torch.stack(groups)]) if groups else contributions
        return rows.square().sum(1)

    def fslrs(self, mean: NDArray[np.float64]) -> dict[str, float]:
        """The root of each mean."""
        names = [*self.model.parameters, *self.model.depth_groups]
        return dict(zip(names, np.sqrt(mean).tolist(), strict=True))
