"""c_n = Δ_ℓφ_n: what each example n contributes to the change of φ under each tensor's update.

For each module, c_n = ⟨δy_n, ∂φ/∂y_n⟩. Here y_n are the rows of the module's output that belong to
example n, and δy_n is their change under ΔW_ℓ. So one forward and one backward pass over the
activations give c for all tensors and examples. No gradient of a weight is formed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from flerm_core.measure.autodiff.example_layout import Layout, has_gradient
from flerm_core.measure.autodiff.local_derivatives import (
    LocalDerivatives,
    NoDerivative,
    one_line,
)
from flerm_core.measure.autodiff.module_hooks import KnownEarliest, ModuleHooks, ModuleOutput
from flerm_core.measure.autodiff.module_products import (
    ModuleCall,
    closed_form_products,
    has_closed_form,
    replay_products,
)
from flerm_core.measure.autodiff.sharded_products import sharded_products
from flerm_core.measure.distributed.sharding import Sharding, to_local
from flerm_core.measure.estimators.gradient_moments import sum_of_z
from flerm_core.measure.estimators.parameter_owners import ParameterOwners
from flerm_core.measure.measured_model import MeasuredModel
from flerm_core.measure.output_projection import tensors_in
from flerm_core.measure.state_guard import hooks_disabled
from flerm_core.measure.update.allgather import AllGather
from flerm_core.measure.update.weight_update import WeightUpdate

# How far Σ_n c_n and ⟨ΔW, ∂φ/∂W⟩ may differ by rounding, relative to their size. Where no hook
# observed one of a tensor's uses, they differ by the whole part of that use.
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-2, torch.bfloat16: 0.15, torch.float16: 0.05}

# The values of a tensor that does not move φ (a bias before BatchNorm) are rounding errors.
# Differences below this fraction of the median tensor's size are ignored.
_NEGLIGIBLE = 1e-4

# Where no hook observed any use of a tensor but the tensor has a gradient: above this fraction of
# the median tensor's size, the gradient is more than rounding, and a use was missed.
_UNOBSERVED = 1e-12


@dataclass
class HookPlan:
    """How the model is observed. `LayoutProbe` finds the plan.

    layouts: where the examples' rows are in each output that was observed in any discovery.
    shared: the modules whose output is the same for all examples, as `ModuleHooks` takes them. It
        is a dictionary because its order counts.
    batch_axis: which tensor of a batch counts the examples, and along which dimension.
    idle_outputs: the outputs whose gradient was always zero, so that their layout is not yet known
        for certain (LoRA's A while B is zero).
    idle_tensors: the tensors that have hardly moved φ so far, so that a missed use of them would
        not have shown.
    known_earliest: as `ModuleHooks` keeps it from forward to forward.
    """

    layouts: dict[ModuleOutput, Layout] = field(default_factory=dict)
    shared: dict[nn.Module, None] = field(default_factory=dict)
    batch_axis: tuple[int, int] | None = None
    idle_outputs: set[ModuleOutput] = field(default_factory=set)
    idle_tensors: set[str] = field(default_factory=set)
    known_earliest: KnownEarliest = field(default_factory=KnownEarliest)

    def rows_of(self, batch: Any) -> int:
        """How many examples `batch` has by `batch_axis`; 0 where it has no such dimension."""
        if self.batch_axis is None:
            return 0
        index, axis = self.batch_axis
        shapes = [tensor.shape for tensor in tensors_in(batch)]
        has_axis = index < len(shapes) and axis < len(shapes[index])
        return shapes[index][axis] if has_axis else 0


class ExampleContributions:
    """Computes c [tensors, N] by a forward with hooks and a backward along ∂φ/∂f."""

    def __init__(self, model: MeasuredModel) -> None:
        self.model = model
        self.sharding = model.sharding or Sharding()
        self.owners = ParameterOwners(model.module, model.parameters)
        self.positions = {name: i for i, name in enumerate(model.parameters)}
        self.plan = HookPlan()
        self.derivatives = LocalDerivatives()
        # Tensor names, in the order in which the last backward requested their ΔW.
        self._gather_order: list[str] = []

    def forward(self, batch: Any) -> tuple[ModuleHooks, Tensor]:
        """Runs the model on `batch` with hooks. Returns the hooks and the outputs f [N, ...]."""
        plan = self.plan
        n_examples = plan.rows_of(batch) if plan.shared else 0
        shared = plan.shared if n_examples else {}
        hooks = ModuleHooks(self.owners.owners, shared, n_examples, plan.known_earliest)
        with hooks.attached():
            return hooks, self.model.outputs(batch)

    def fits(self, batch: Any, hooks: ModuleHooks, outputs: Tensor) -> bool:
        """Whether the plan holds for the forward of `batch` that gave `hooks` and `outputs`.

        The plan does not hold where a module ran for the first time, or more often than before
        (layer drop, loops), or where an activation's shape does not fit the layout in the plan.
        """
        n_examples = len(outputs)
        if n_examples == 0:
            return True
        if self.plan.shared and self.plan.rows_of(batch) != n_examples:
            return False
        layouts = self.plan.layouts
        return all(
            output in layouts and layouts[output].fits(shape, n_examples)
            for output, shape in hooks.shapes.items()
        )

    def backward(
        self, hooks: ModuleHooks, outputs: Tensor, direction: Tensor, update: WeightUpdate
    ) -> tuple[Tensor, bool]:
        """This rank's part of c [tensors, N], float64, for ∂φ/∂f = `direction`.

        Also returns whether the plan still holds. It does not where an idle output got a gradient,
        or an idle tensor a use that no hook observed.
        """
        n_examples = len(outputs)
        idle_moved = False
        contributions = torch.zeros(
            len(self.positions), n_examples, dtype=torch.float64, device=outputs.device
        )
        gathered = AllGather(self.sharding, update, self._gather_order)

        def add(output: ModuleOutput, call: ModuleCall, gradient: Tensor) -> None:
            nonlocal idle_moved
            layout = self.plan.layouts[output]
            if output in self.plan.idle_outputs:
                idle_moved = idle_moved or bool(has_gradient(to_local(gradient)).any())
            for name in dict.fromkeys(self.owners.owners[call.module].values()):
                change = gathered.change(name)
                products = self._products(output, call, name, change, gradient)
                if products is not None:
                    contributions[self.positions[name]].add_(
                        layout.sum_by_example(products, n_examples)
                    )

        idle = self._idle_parameters()
        with hooks_disabled(list(idle.values())):
            gradients = hooks.backward(outputs, direction, add, list(idle.values()))
        self._gather_order = gathered.requested
        gradient_sums = contributions.sum(1)
        for name, gradient in zip(idle, gradients, strict=True):
            if gradient is not None:
                gradient = gradient.to_dense()
                gradient_sums[self.positions[name]] = sum_of_z(self.model, update, name, gradient)
        differ = bool(idle) and bool(self.compare(contributions, gradient_sums, outputs)[0])
        return contributions, not (idle_moved or differ)

    def _idle_parameters(self) -> dict[str, nn.Parameter]:
        """The idle tensors whose gradients a backward pass gives.

        None where ranks share tensors, because there only FSDP2 itself can reduce the gradients.
        """
        if self.model.sharding is not None:
            return {}
        parameters = self.model.parameters
        return {
            name: parameters[name]
            for name in sorted(self.plan.idle_tensors)
            if parameters[name].requires_grad
        }

    def compare(
        self, contributions: Tensor, gradient_sums: Tensor, outputs: Tensor
    ) -> tuple[list[str], list[str]]:
        """The tensors for which Σ_n c_n differs from ⟨ΔW, ∂φ/∂W⟩ by more than rounding.

        Also returns the tensors that hardly move φ, for which the comparison shows nothing. All
        ranks get the same answer.

        contributions: this rank's part of c, [tensors, N].
        gradient_sums: this rank's part of ⟨ΔW, ∂φ/∂W⟩, [tensors].
        outputs: f of the same forward; only its dtype and device are used.
        """
        sums, gradient_sums, squares = self.sharding.sum_world(
            torch.stack([contributions.sum(1), gradient_sums, contributions.square().sum(1)])
        ).unbind()
        size = squares.sqrt() + gradient_sums.abs()
        typical = size.median()
        differ = (sums - gradient_sums).abs() > (
            self._rounding(outputs) * size + _NEGLIGIBLE * typical
        )
        # A tensor without any observed use differs even where its gradient is very small.
        differ |= (squares == 0.0) & (size > _UNOBSERVED * typical)
        negligible = size <= _NEGLIGIBLE * typical
        names = list(self.positions)
        return (
            [name for name, flag in zip(names, differ.tolist(), strict=True) if flag],
            [name for name, flag in zip(names, negligible.tolist(), strict=True) if flag],
        )

    def _rounding(self, outputs: Tensor) -> float:
        """The allowance of the coarsest dtype that the model computes in."""
        device = outputs.device.type
        dtypes = {outputs.dtype, *(p.dtype for p in self.model.parameters.values())}
        if torch.is_autocast_enabled(device):
            dtypes.add(torch.get_autocast_dtype(device))
        return max(_ROUNDING.get(dtype, 1e-2) for dtype in dtypes)

    def _products(
        self, output: ModuleOutput, call: ModuleCall, name: str, change: Tensor, gradient: Tensor
    ) -> Tensor | None:
        """δy ⊙ ∂φ/∂y for tensor `name`; None where only an equal part on another rank counts."""
        held = self.owners.owners[call.module]
        path = next(path for path, each in held.items() if each == name)
        if self.sharding.is_model_parallel:
            is_first = self.sharding.is_first_model_parallel_rank
            return sharded_products(call, path, change, gradient, is_first=is_first)
        if has_closed_form(call.module, path):
            try:
                return closed_form_products(call, path, change, gradient)
            except (RuntimeError, TypeError, ValueError) as error:
                raise NoDerivative(call.module, one_line(error)) from error
        return replay_products(call, self.derivatives, held, name, change, output.index, gradient)
