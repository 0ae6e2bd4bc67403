"""`example`, the default: a draw gives one sample per example instead of one per batch.

1. φ = Σ_n φ_n, and ω is independent between examples (Eq. 3). So the changes c_n = Δ_ℓφ_n have mean
   0, and E[c_n c_m] = 0 for n ≠ m.
2. FSLR² = E[(Δ_ℓφ)²] = E[(Σ_n c_n)²] (Eq. 7) is therefore E[Σ_n c_n²]: the same quantity from N
   samples, unbiased.
3. c_n comes from the gradients of activations alone (`example_contributions`).

The first draw finds out how to observe the model, and checks against a plain backward that no use
of a tensor was missed (`layout_probe`). A later draw for which this plan does not hold makes a new
one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flerm_core._warnings import warn
from flerm_core.errors import EstimatorNotApplicable
from flerm_core.measure.autodiff.gradient_stream import stream_gradients
from flerm_core.measure.autodiff.local_derivatives import NoDerivative
from flerm_core.measure.distributed.fsdp2 import reset_after_error
from flerm_core.measure.estimators.base import Draw, Estimator, OutputLayer
from flerm_core.measure.estimators.example_contributions import ExampleContributions
from flerm_core.measure.estimators.gradient_moments import sum_of_z
from flerm_core.measure.estimators.layout_probe import LayoutProbe
from flerm_core.measure.measured_model import MeasuredModel
from flerm_core.measure.output_projection import draw_projection, projection_scale
from flerm_core.measure.state_guard import ForwardStart
from flerm_core.measure.update.weight_update import WeightUpdate


class PerExample(Estimator):
    """FSLR = √E[Σ_n c_n²].

    Joint FSLRs of depth groups cost nothing more: the c_n of a group is the sum of its tensors'.

    Where ranks share the work on a batch, each rank has a part of c. The parts are added up before
    they are squared.
    """

    name = "example"

    def __init__(self, model: MeasuredModel, output_layer: OutputLayer | None = None) -> None:
        super().__init__(model, output_layer)
        self._contributions = ExampleContributions(model)
        self._probe = LayoutProbe(self._contributions)
        # The `requires_grad` flags for which discovery succeeded: on this rank, and on all ranks.
        self._discovered_for: tuple[bool, ...] = ()
        self._agreed_for: tuple[bool, ...] = ()
        self._measurements = 0
        self._verify = False
        self._coupled = False  # whether examples cannot be told apart
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

    def end_discovery(self) -> None:
        """Notes that all ranks can use what the last draw found out."""
        self._agreed_for = self._requires_grad()

    def begin_measurement(self) -> None:
        """Requests a check against a plain backward in the measurements 2, 4, 8, 16, …

        A use of a tensor may begin to matter at any time (behind a gate that is 0 at first).
        """
        self._measurements += 1
        self._verify = self._measurements > 1 and self._measurements.bit_count() == 1

    def _requires_grad(self) -> tuple[bool, ...]:
        return tuple(p.requires_grad for p in self.model.parameters.values())

    def draw(self, batch: Any, update: WeightUpdate, generator: torch.Generator) -> Draw:
        """Σ_n c_n² of every tensor, then of every depth group.

        With the reduction scope "model_parallel": this rank's part of c, flat [tensors · N]. A rank
        whose first batch is empty finds out on a later draw how to observe the model.
        """
        if self._discovered_for != self._requires_grad():
            self._coupled = False
            found = self._discover(
                batch, update, generator, ForwardStart(self.model.module, self.model.written)
            )
        elif self._coupled:
            found = self._one_sample(batch, update, generator)
        else:
            found = self._by_plan(batch, update, generator)
        if found is None:
            length = 0 if self.reduction == "model_parallel" else self.n_statistics
            return Draw(torch.zeros(length, dtype=torch.float64, device=self.model.device), 0)
        contributions, outputs = found
        scale = projection_scale(outputs)  # ∂φ/∂f has this factor, and a draw must not have it
        if self.reduction == "model_parallel":
            return Draw((contributions / scale).reshape(-1), outputs.numel())
        return Draw(self._sums_of_squares(contributions) / scale**2, outputs.numel())

    def _by_plan(
        self, batch: Any, update: WeightUpdate, generator: torch.Generator
    ) -> tuple[Tensor, Tensor] | None:
        """c and the outputs, by the plan; by a new plan where the present one does not hold.

        Ranks whose forwards do not wait for one another need not agree about that, so there is no
        all-reduce between them.
        """
        sharding = self._contributions.sharding
        start = ForwardStart(self.model.module, self.model.written)
        hooks, outputs = self._contributions.forward(batch)
        if not sharding.any_rank(not self._contributions.fits(batch, hooks, outputs)):
            direction = draw_projection(outputs, generator)
            try:
                found, holds = self._contributions.backward(hooks, outputs, direction, update)
            except NoDerivative:  # a module computes in another way than before
                reset_after_error(self.model.module)
                holds = False
            if holds and self._verify and len(outputs) > 0:
                self._verify = False
                holds = not self._probe.unexplained(batch, start, direction, found, update)
            if not sharding.any_rank(not holds):
                return found, outputs.detach()
        del hooks, outputs
        return self._discover(batch, update, generator, start)

    def _discover(
        self,
        batch: Any,
        update: WeightUpdate,
        generator: torch.Generator,
        start: ForwardStart,
    ) -> tuple[Tensor, Tensor] | None:
        """Finds the layout out on `batch`, and returns c and the outputs of `batch`.

        Returns None where the batch has no example.

        Where examples cannot be told apart, c has a single column from now on, Σ_n c_n. Other ranks
        may keep one column per example: both forms have the same expectation.

        Raises `EstimatorNotApplicable` where examples cannot be told apart and ranks share tensors:
        gradients are then sums over ranks, so Σ_n c_n of one rank cannot be computed.
        """
        start.restore()
        generator_state = generator.get_state()
        try:
            found = self._probe.discover(batch, update, generator)
        except EstimatorNotApplicable as error:
            if self.model.sharding is not None:
                self._discovered_for = self._agreed_for = ()
                raise
            warn(
                f"`example` has one sample a draw and not one per example, because {error}: "
                "FSLRs are unbiased but as noisy as those of `full`, so take more samples="
            )
            self._coupled, self._discovered_for = True, self._requires_grad()
            start.restore()
            # The same ω as in a draw that does not try discovery first.
            generator.set_state(generator_state)
            return self._one_sample(batch, update, generator)
        # Values that are not finite show no layout: a later draw finds it.
        if found is not None and not self._contributions.sharding.any_rank(
            not bool(found[0].isfinite().all())
        ):
            self._discovered_for = self._requires_grad()
        return found

    def _one_sample(
        self, batch: Any, update: WeightUpdate, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Σ_n c_n as the only column of c, and the outputs. Unbiased even where examples mix."""
        outputs = self.model.outputs(batch)
        sums = torch.zeros(
            len(self.model.parameters), 1, dtype=torch.float64, device=outputs.device
        )
        positions = self._contributions.positions

        def add(name: str, gradient: Tensor) -> None:
            sums[positions[name]] = sum_of_z(self.model, update, name, gradient)

        direction = draw_projection(outputs, generator, sums_examples=True)
        stream_gradients(outputs, direction, self.model, add)
        return sums, outputs.detach()

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
