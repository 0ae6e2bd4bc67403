"""`exact`: J·ΔW_ℓ tensor by tensor, without Monte Carlo (Eq. 1 and 2 as they stand)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flerm_core.errors import MeasurementError
from flerm_core.measure.autodiff.central_difference import difference_step
from flerm_core.measure.autodiff.local_derivatives import LocalDerivatives, NoDerivative
from flerm_core.measure.autodiff.module_replay import CallStart
from flerm_core.measure.distributed.fsdp2 import reshard
from flerm_core.measure.distributed.sharding import Sharding, full_tensor, to_local
from flerm_core.measure.estimators.base import Draw, Estimator, OutputLayer
from flerm_core.measure.measured_model import MeasuredModel
from flerm_core.measure.output_projection import as_output
from flerm_core.measure.state_guard import RandomState, seed_generators
from flerm_core.measure.update.weight_update import WeightUpdate


class _OutputModule(nn.Module):
    """The output function as a module, so that its parameters can be replaced from outside."""

    def __init__(self, model: MeasuredModel) -> None:
        super().__init__()
        self.model = model.module
        self._output = model.output

    def forward(self, batch: Any) -> Any:
        return self._output(self.model, batch)


class Exact(Estimator):
    """FSLR = √(1/NK Σ_nk (Δ_ℓ f_nk)²) (Eq. 2), by forward-mode differentiation.

    Where an operator has no forward mode, and for sharded models, the derivative is a central
    difference.

    This estimator costs one forward with tangents per tensor and depth group, more than any other.
    It is meant for models of few tensors, and to judge the other estimators. A stochastic model
    (dropout) is differentiated for masks that each draw makes anew, the same for all tensors.
    """

    name = "exact"

    def __init__(self, model: MeasuredModel, output_layer: OutputLayer | None = None) -> None:
        super().__init__(model, output_layer)
        self._output_module = _OutputModule(model)
        # Differences in half precision, the last method, would be too coarse.
        self._derivatives = LocalDerivatives(n_methods=2)
        # Each tensor and depth group, with the tensors that are moved together to measure it.
        self._members = {name: (name,) for name in model.parameters} | dict(model.depth_groups)

    @property
    def n_statistics(self) -> int:
        """One per tensor and depth group."""
        return len(self._members)

    def draw(self, batch: Any, update: WeightUpdate, generator: torch.Generator) -> Draw:
        """Σ_nk (Δ_ℓ f_nk)² of every tensor and depth group in turn."""
        # The derivatives put the generators back: this alone moves them on from draw to draw.
        seed_generators(int(torch.randint(2**62, ())))
        random_state = RandomState()
        sharding = self.model.sharding
        steps = {} if sharding is None else self._difference_steps(update, sharding)
        squares: list[Tensor] = []
        n_outputs = 0
        for name, members in self._members.items():
            changes = {member: update.change(member) for member in members}
            random_state.restore()
            if sharding is None:
                change = self._derivative(changes, batch)
            else:
                change = self._central_difference(
                    changes, update, batch, steps[name], random_state, sharding
                )
            squares.append(change.square().sum(dtype=torch.float64))
            n_outputs = change.numel()
        return Draw(torch.stack(squares), n_outputs)

    def fslrs(self, mean: NDArray[np.float64]) -> dict[str, float]:
        """The root of each mean."""
        return dict(zip(self._members, np.sqrt(mean).tolist(), strict=True))

    def _derivative(self, changes: dict[str, Tensor], batch: Any) -> Tensor:
        """Δf [N, ...] = J·ΔW (Eq. 1)."""
        tensors = {id(self.model.parameters[name]): change for name, change in changes.items()}
        module = self._output_module
        by_path = {
            path: tensors[id(p)]
            for path, p in module.named_parameters(remove_duplicate=False)
            if id(p) in tensors
        }
        try:
            return self._derivatives.output_changes(
                module, by_path, (batch,), {}, CallStart(module), lambda found: [as_output(found)]
            )[0]
        except NoDerivative as error:
            raise MeasurementError(
                f"the model has no derivative along the update of {', '.join(changes)} "
                f"({error.reason}); use estimator='kronecker'"
            ) from error

    def _central_difference(
        self,
        changes: dict[str, Tensor],
        update: WeightUpdate,
        batch: Any,
        step: float,
        random_state: RandomState,
        sharding: Sharding,
    ) -> Tensor:
        """(f(W + hΔW) − f(W − hΔW)) / 2h [N, ...], for a sharded model.

        Zero on all but the first of the ranks that work on one batch, so that it counts once.

        changes: this rank's part of each ΔW, by tensor name.
        update: the step that is measured; it moves the weights and moves them back.
        batch: the probe batch.
        step: h, from `_difference_steps`.
        random_state: where every generator starts for each of the two forwards.
        sharding: how ranks share the tensors.
        """
        outputs = []
        for factor in (step, -step):
            with update.displaced(changes, factor):
                reshard(self.model.module)  # frees outdated weights that a forward has gathered
                random_state.restore()
                with torch.no_grad():
                    outputs.append(self.model.outputs(batch))
        if outputs[0].dtype not in (torch.float32, torch.float64):
            raise MeasurementError(
                "estimator='exact' takes differences of outputs where the model is sharded, and "
                f"{outputs[0].dtype} is too coarse for them; use 'example'"
            )
        ahead, behind = (full_tensor(each).double() for each in outputs)
        change = (ahead - behind) / (2.0 * step)
        return change if sharding.is_first_model_parallel_rank else torch.zeros_like(change)

    def _difference_steps(self, update: WeightUpdate, sharding: Sharding) -> dict[str, float]:
        """`difference_step` for each tensor and depth group, the same on all ranks."""
        names = list(self.model.parameters)
        # [tensors, 3]: sum of squared weights, sum of squared changes, number of elements
        sizes = torch.zeros(len(names), 3, dtype=torch.float64, device=sharding.device)
        for position, name in enumerate(names):
            if sharding.is_primary_replica(name):
                weight = to_local(self.model.parameters[name])
                squares = (weight.double().square(), update.change(name).double().square())
                sizes[position, :2] = torch.stack([each.sum() for each in squares])
                sizes[position, 2] = weight.numel()
        by_name = dict(zip(names, sharding.sum_world(sizes).tolist(), strict=True))
        all_weights, _, all_elements = (
            sum(column) for column in zip(*by_name.values(), strict=True)
        )
        epsilon = max(torch.finfo(p.dtype).eps for p in self.model.parameters.values())
        steps = {}
        for group, members in self._members.items():
            weights, changes, elements = (
                sum(by_name[member][i] for member in members) for i in range(3)
            )
            typical = all_weights / all_elements
            steps[group] = difference_step(weights, changes, elements, typical, epsilon)
        return steps
