"""`exact`: no Monte Carlo. J·ΔW_ℓ tensor by tensor (Eq. 1 and 2 as they stand): by forward-mode differentiation, or by central
differences where the model is sharded, which has no forward mode."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flerm_core.errors import MeasurementError
from flerm_core.measure.autodiff.jvp import derivative
from flerm_core.measure.distributed.fsdp2 import reshard
from flerm_core.measure.distributed.sharding import local, whole
from flerm_core.measure.estimators.base import Estimator, OutputLayer
from flerm_core.measure.measured_model import MeasuredModel, Output
from flerm_core.measure.output_projection import as_output
from flerm_core.measure.state_guard import RandomState
from flerm_core.measure.update.weight_update import WeightUpdate


class _Function(nn.Module):
    """`output(model, ·)` as a module, so that its parameters can be given from outside."""

    def __init__(self, subject: MeasuredModel) -> None:
        super().__init__()
        self.model = subject.module
        self._output: Output = subject.output

    def forward(self, batch: Any) -> Any:
        return self._output(self.model, batch)


class Exact(Estimator):
    """Costs one forward with tangents per tensor and role, whatever the number of draws of the others: for few tensors, or
    as the judge.

    A stochastic model (dropout) is differentiated for one and the same draw of its masks.
    """

    name = "exact"
    measures_depth_groups = True

    def __init__(self, model: MeasuredModel, output_layer: OutputLayer | None = None) -> None:
        super().__init__(model, output_layer)
        subject = model
        self._function = _Function(subject)
        self._rows = {name: (name,) for name in subject.parameters} | dict(subject.depth_groups)

    @property
    def n_statistics(self) -> int:
        """One per tensor and role."""
        return len(self._rows)

    def draw(
        self, batch: Any, update: WeightUpdate, generator: torch.Generator
    ) -> tuple[Tensor, int]:
        """Σ (Δ_ℓ f_nk)² of every tensor and role in turn."""
        moved = self._by_forward_mode if self.model.sharding is None else self._by_difference
        masks = RandomState()
        squares: list[Tensor] = []
        count = 0
        for members, step in zip(self._rows.values(), self._steps(update), strict=True):
            change, count = moved(members, update, batch, step, masks)
            squares.append(change.square().sum(dtype=torch.float64))
        return torch.stack(squares), count

    def fslrs(self, mean: NDArray[np.float64]) -> dict[str, float]:
        """The root of each mean."""
        return dict(zip(self._rows, np.sqrt(mean).tolist(), strict=True))

    def _by_forward_mode(
        self,
        members: tuple[str, ...],
        update: WeightUpdate,
        batch: Any,
        step: float,
        masks: RandomState,
    ) -> tuple[Tensor, int]:
        places = {id(p): f"model.{name}" for name, p in self.model.module.named_parameters()}
        masks.restore()
        changes = {places[id(self.model.parameters[name])]: update.change(name) for name in members}
        outputs, moved = derivative(
            self._function, changes, (batch,), {}, lambda result: [as_output(result)]
        )
        return moved[0], outputs[0].numel()

    def _by_difference(
        self,
        members: tuple[str, ...],
        update: WeightUpdate,
        batch: Any,
        step: float,
        masks: RandomState,
    ) -> tuple[Tensor, int]:
        """(f(W + hΔW) − f(W − hΔW)) / 2h, this rank's part of it: sharded models have no forward mode."""
        changes = {name: update.change(name) for name in members}
        ends = []
        for factor in (step, -step):
            with update.displaced(changes, factor):
                reshard(self.model.module)  # whole weights that an earlier forward left are old
                masks.restore()
                with torch.no_grad():
                    ends.append(self.model.outputs(batch))
        if ends[0].dtype not in (torch.float32, torch.float64):
            raise MeasurementError(
                f"estimator='exact' takes differences of outputs where the model is sharded, and {ends[0].dtype} is too coarse "
                "for them; use 'example'"
            )
        forward, backward = (whole(end) for end in ends)
        moved = (forward.double() - backward.double()) / (2.0 * step)
        assert self.model.sharding is not None
        return moved if self.model.sharding.first_of_split else torch.zeros_like(
            moved
        ), forward.numel()

    def _steps(self, update: WeightUpdate) -> list[float]:
        """h for each row: such that hΔW is ∛ε of the weights in size, where the errors of rounding (ε/h) and of curvature (h²)
        are both least. Weights smaller than the model's are taken as large as these: fresh biases are zero."""
        sharding = self.model.sharding
        if sharding is None:
            return [0.0] * len(self._rows)
        sizes = {
            name: torch.zeros(3, dtype=torch.float64, device=sharding.device)
            for name in self.model.parameters
        }
        for name, parameter in self.model.parameters.items():
            if sharding.counts(name):
                weight = local(parameter)
                terms = [
                    weight.double().square().sum(),
                    update.change(name).double().square().sum(),
                ]
                sizes[name] += torch.tensor(
                    [*(float(term) for term in terms), weight.numel()], dtype=torch.float64
                )
        total = dict(
            zip(sizes, sharding.total(torch.stack(list(sizes.values()))).tolist(), strict=True)
        )
        typical = sum(weights for weights, _, _ in total.values()) / sum(
            count for _, _, count in total.values()
        )
        epsilon = max(torch.finfo(p.dtype).eps for p in self.model.parameters.values())
        steps = []
        for members in self._rows.values():
            weights, changes, count = (sum(total[name][i] for name in members) for i in range(3))
            size = math.sqrt(max(weights / count, typical))
            steps.append(
                epsilon ** (1 / 3) * size / math.sqrt(changes / count) if changes > 0.0 else 1.0
            )
        return steps
