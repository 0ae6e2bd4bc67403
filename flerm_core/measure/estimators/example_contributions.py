"""c_n = Δ_ℓφ_n: what each example n contributes to the change of φ under each tensor's update.

Module by module c_n = ⟨δy_n, ∂φ/∂y_n⟩, with y_n the rows of the module's output that belong to
example n and δy their change under ΔW_ℓ. So one forward and backward pass over activations gives c
for all tensors and examples. No gradient of a weight is formed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from flerm_core.errors import EstimatorNotApplicable
from flerm_core.measure.autodiff.example_layout import Layout
from flerm_core.measure.autodiff.module_hooks import ModuleHooks, ModuleOutput
from flerm_core.measure.autodiff.module_products import (
    ModuleCall,
    closed_form_products,
    has_closed_form,
    jvp_products,
)
from flerm_core.measure.autodiff.sharded_products import sharded_products
from flerm_core.measure.distributed.sharding import Sharding
from flerm_core.measure.estimators.parameter_owners import ParameterOwners
from flerm_core.measure.measured_model import MeasuredModel
from flerm_core.measure.output_projection import tensors_in
from flerm_core.measure.update.allgather import AllGather
from flerm_core.measure.update.weight_update import WeightUpdate


@dataclass
class HookPlan:
    """How the model is observed. `LayoutProbe` finds it out.

    layouts: where the examples' rows are in each observed output.
    shared: the modules whose output is the same for all examples, as `ModuleHooks` takes them. A
        dictionary, for its order.
    earliest: the outputs that depend on no other observed output; empty while unknown.
    batch_axis: which tensor of a batch counts the examples, and along which dimension.
    """

    layouts: dict[ModuleOutput, Layout] = field(default_factory=dict)
    shared: dict[nn.Module, None] = field(default_factory=dict)
    earliest: set[ModuleOutput] = field(default_factory=set)
    batch_axis: tuple[int, int] | None = None


class ExampleContributions:
    """Computes c [tensors, N] by a forward with hooks and a backward along ∂φ/∂f."""

    def __init__(self, model: MeasuredModel) -> None:
        self.model = model
        self.sharding = model.sharding or Sharding()
        self.owners = ParameterOwners(model.module, model.parameters)
        self.positions = {name: i for i, name in enumerate(model.parameters)}
        self.plan = HookPlan()
        self._gather_order: list[str] = []  # in which the last backward requested ΔW

    def forward(self, batch: Any) -> tuple[ModuleHooks, Tensor]:
        """Runs the model on `batch` with hooks. Returns these and the outputs f [N, ...]."""
        plan, n_examples = self.plan, 0
        if plan.shared and plan.batch_axis is not None:
            index, axis = plan.batch_axis
            n_examples = list(tensors_in(batch))[index].shape[axis]
        hooks = ModuleHooks(self.owners.owners, plan.shared, n_examples, plan.earliest)
        with hooks.attached():
            return hooks, self.model.outputs(batch)

    def backward(
        self, hooks: ModuleHooks, outputs: Tensor, direction: Tensor, update: WeightUpdate
    ) -> Tensor:
        """c [tensors, N] float64, for ∂φ/∂f = `direction`; this rank's part of it."""
        n_examples = len(outputs)
        contributions = torch.zeros(
            len(self.positions), n_examples, dtype=torch.float64, device=outputs.device
        )
        gathered = AllGather(self.sharding, update, self._gather_order)

        def add(output: ModuleOutput, call: ModuleCall, gradient: Tensor) -> None:
            layout = self._layout(output, n_examples)
            for name in dict.fromkeys(self.owners.owners[call.module].values()):
                change = gathered.change(name)
                products = self._products(output, call, name, change, gradient)
                if products is not None:
                    contributions[self.positions[name]].add_(
                        layout.sum_by_example(products, n_examples)
                    )

        hooks.backward(outputs, direction, add)
        self._gather_order = gathered.requested
        return contributions

    def _products(
        self, output: ModuleOutput, call: ModuleCall, name: str, change: Tensor, gradient: Tensor
    ) -> Tensor | None:
        """δy ⊙ ∂φ/∂y for tensor `name`; None where another rank's equal part counts."""
        held = self.owners.owners[call.module]
        path = next(path for path, each in held.items() if each == name)
        if self.sharding.is_model_parallel:
            is_first = self.sharding.is_first_model_parallel_rank
            return sharded_products(call, path, change, gradient, is_first=is_first)
        if "." not in path and has_closed_form(call.module):
            return closed_form_products(call, path, change, gradient)
        return jvp_products(call, held, name, change, output.index, gradient)

    def _layout(self, output: ModuleOutput, n_examples: int) -> Layout:
        if n_examples == 1:
            return Layout("major")
        if output not in self.plan.layouts:
            raise EstimatorNotApplicable(
                f"{type(output.module).__name__} ran more often than at first: its rows are unknown"
            )
        return self.plan.layouts[output]
