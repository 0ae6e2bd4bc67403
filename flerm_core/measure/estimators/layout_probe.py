"""Finds out how a model is observed example by example, on the first probe batch.

What must be known is which module answers for which tensor, which activations all examples share,
and where the rows of each example are. `LayoutProbe.discover` gives the steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flerm_core.errors import EstimatorNotApplicable, MeasurementError
from flerm_core.measure.autodiff.example_layout import Layout, random_half
from flerm_core.measure.autodiff.gradient_stream import is_reentrant, stream_gradients
from flerm_core.measure.autodiff.module_hooks import ModuleHooks, ModuleOutput
from flerm_core.measure.autodiff.module_products import ModuleCall
from flerm_core.measure.autodiff.sharded_products import find_sharded_layout
from flerm_core.measure.distributed.fsdp2 import reset_after_error
from flerm_core.measure.distributed.sharding import sharded_like, to_local
from flerm_core.measure.estimators.example_contributions import ExampleContributions
from flerm_core.measure.estimators.gradient_moments import sum_of_z
from flerm_core.measure.output_projection import draw_projection, tensors_in
from flerm_core.measure.state_guard import RandomState
from flerm_core.measure.update.weight_update import WeightUpdate

# How far Σ_n c_n and ⟨ΔW, ∂φ/∂W⟩ may differ by rounding, relative to their size. A use of a tensor
# that no hook observed shows as an error of the size of its part.
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-2, torch.bfloat16: 0.15, torch.float16: 0.05}

# A tensor that does not move φ (a bias before BatchNorm) is all rounding. Differences below this
# fraction of the median tensor's size are not looked at.
_NEGLIGIBLE = 1e-4


class LayoutProbe:
    """Fills in the `HookPlan` and the `ParameterOwners` of `contributions`.

    `zero_outputs` are the outputs whose gradient was zero everywhere (LoRA's A while B is zero).
    Any layout explains such a gradient, so the layout of these outputs stays unknown.
    `uncertain`: whether there are such outputs, and others than at the discovery before. Another
    discovery may then find out their layout.
    """

    def __init__(self, contributions: ExampleContributions) -> None:
        self._contributions = contributions
        self._model = contributions.model
        self._sharding = contributions.sharding
        self._plan = contributions.plan
        self._owners = contributions.owners
        self.zero_outputs: frozenset[ModuleOutput] = frozenset()
        self.uncertain = False

    def discover(
        self, batch: Any, update: WeightUpdate, generator: torch.Generator
    ) -> tuple[Tensor, Tensor] | None:
        """Finds out how every module is observed; then gives c [tensors, N] and the outputs.

        c holds the contribution of each example of `batch` to each tensor's Δφ.

        1. Run the forward with hooks, and find the layout of every output (`example_layout`).
        2. Where an output has none, all examples share it, or its module mixes them. Expand it to
           the examples in the first case, observe the module's parent instead in the second. Then
           go to 1.
        3. Compute c, and compare Σ_n c_n with ⟨ΔW, ∂φ/∂W⟩ (Eq. 4) from a plain backward. Where
           they differ, a use of the tensor went unobserved: observe the owner's parent instead,
           and go to 1.

        Every pass has a forward of its own, from the same random state: a graph that is kept for
        another pass would hold what activation checkpointing recomputed for the last one.

        Returns None where no rank's batch has examples. Raises `EstimatorNotApplicable` with the
        reason where examples cannot be told apart, and `MeasurementError` where only some ranks of
        a sharded model have examples.
        """
        self._plan.earliest = set()
        random_state = RandomState()
        hooks, outputs = self._contributions.forward(batch)
        if not self._sharding.any_rank(len(outputs) > 0):
            return None
        self._check_batch(outputs)
        reference = outputs.detach()
        self._plan.batch_axis = _batch_axis(batch, len(reference))
        direction = draw_projection(reference, generator)
        chosen = random_half(len(reference), generator).to(reference.device)
        tried_as_shared: list[nn.Module] = []
        zero_before = self.zero_outputs
        while True:
            unclear = self._find_layouts(hooks, outputs, direction, chosen)
            del hooks, outputs  # their graph is used up
            if unclear is not None:
                self._resolve_unclear(unclear, tried_as_shared)
            hooks, outputs = self._forward_again(batch, reference, random_state, tried_as_shared)
            if unclear is None:
                hooks.earliest = self._plan.earliest = hooks.find_earliest()
                found = self._contributions.backward(hooks, outputs, direction, update)
                random_state.restore()
                plain_outputs = self._model.outputs(batch)
                if self._verify_against_gradients(plain_outputs, direction, found, update):
                    zero = self.zero_outputs
                    self.uncertain = bool(zero) and zero != zero_before
                    return found, reference
                self._plan.earliest = set()
                hooks, outputs = self._forward_again(
                    batch, reference, random_state, tried_as_shared
                )

    def _check_batch(self, outputs: Tensor) -> None:
        if self._sharding.any_rank(len(outputs) == 0):
            raise MeasurementError(
                "the first probe batch of a sharded model is empty: every rank needs examples to "
                "begin with"
            )
        if is_reentrant(outputs):
            raise EstimatorNotApplicable(
                "activation checkpointing with use_reentrant=True hides the modules inside it; "
                "use_reentrant=False does not"
            )

    def _forward_again(
        self,
        batch: Any,
        reference: Tensor,
        random_state: RandomState,
        tried_as_shared: list[nn.Module],
    ) -> tuple[ModuleHooks, Tensor]:
        """A forward from the same random state, whose outputs equal `reference` on all ranks.

        Where they do not, or where it raises, the module whose output was expanded last is at
        fault: whoever takes the output does more than to broadcast it. Then its parent is observed.
        """
        while True:
            random_state.restore()
            is_equal = False
            try:
                hooks, outputs = self._contributions.forward(batch)
                is_equal = torch.equal(to_local(outputs), to_local(reference))
            except Exception:
                if not (tried_as_shared and tried_as_shared[-1] in self._plan.shared):
                    raise
                reset_after_error(self._model.module)
            if not self._sharding.any_rank(not is_equal):
                return hooks, outputs
            self._promote_to_parent(tried_as_shared[-1])

    def _find_layouts(
        self, hooks: ModuleHooks, outputs: Tensor, direction: Tensor, chosen: Tensor
    ) -> nn.Module | None:
        """Fills in the layout of every observed output.

        Returns the first module of the forward whose output has none, on any rank; None where all
        have one. chosen: the half of the examples whose ω is not zero, bool [N].
        """
        if len(outputs) == 1 and not self._sharding.shards:
            return None
        found: dict[ModuleOutput, Layout | None] = {}
        zero: set[ModuleOutput] = set()

        def find(output: ModuleOutput, call: ModuleCall, gradient: Tensor) -> None:
            found[output] = find_sharded_layout(gradient, chosen)
            if not to_local(gradient).any():
                zero.add(output)

        mask = chosen.reshape(-1, *[1] * (outputs.ndim - 1)).to(direction.dtype)
        hooks.backward(outputs, direction * sharded_like(direction, mask), find)
        self._sharding.check_order(
            [(type(each.module).__name__, each.call, each.index) for each in found]
        )
        self._plan.layouts = {each: layout for each, layout in found.items() if layout is not None}
        self.zero_outputs = frozenset(zero)
        missing = self._sharding.sum_world(
            torch.tensor([float(layout is None) for layout in found.values()], device=mask.device)
        )
        modules = {
            output.module for output, flag in zip(found, missing.tolist(), strict=True) if flag
        }
        return next((output.module for output in hooks.edges if output.module in modules), None)

    def _resolve_unclear(self, module: nn.Module, tried_as_shared: list[nn.Module]) -> None:
        """The rows of `module`'s output belong to no single example: shares it, or mixes them."""
        if module not in tried_as_shared and self._plan.batch_axis is not None:
            tried_as_shared.append(module)
            self._plan.shared[module] = None
        else:
            self._promote_to_parent(module)

    def _promote_to_parent(self, module: nn.Module) -> None:
        """The parent of `module` answers for its tensors, by a forward-mode derivative.

        That costs more than a closed form, so it is allowed for a tenth of the tensors (at least
        two). Raises `EstimatorNotApplicable` beyond that.
        """
        self._plan.shared.pop(module, None)
        tensors = set(self._owners.owners[module].values())
        allowed = max(2, len(self._contributions.positions) // 10)
        are_few = len(self._owners.promoted | tensors) <= allowed
        if not are_few or not all(self._owners.promote(name) for name in sorted(tensors)):
            name = next(path for path, each in self._model.module.named_modules() if each is module)
            raise EstimatorNotApplicable(
                f"the rows of {name or 'the model'} ({type(module).__name__}) cannot be told apart "
                "by example: examples share statistics or are mixed (BatchNorm in train mode, "
                "routing), or dimension 0 of the output does not count them"
            )

    def _verify_against_gradients(
        self, outputs: Tensor, direction: Tensor, contributions: Tensor, update: WeightUpdate
    ) -> bool:
        """Whether Σ_n c_n = ⟨ΔW, ∂φ/∂W⟩ for every tensor, up to rounding.

        Moves tensors that differ to the parents of their owners. Raises `EstimatorNotApplicable`
        where the model itself owns one already. outputs: of a forward without hooks.
        """
        gradient_sums = torch.zeros_like(contributions[:, 0])
        positions = self._contributions.positions

        def add(name: str, gradient: Tensor) -> None:
            gradient_sums[positions[name]] = sum_of_z(self._model, update, name, gradient)

        stream_gradients(outputs, direction, self._model, add)
        sums, gradient_sums, squares = self._sharding.sum_world(
            torch.stack([contributions.sum(1), gradient_sums, contributions.square().sum(1)])
        ).unbind()
        size = squares.sqrt() + gradient_sums.abs()
        tolerance = self._rounding(outputs) * size + _NEGLIGIBLE * size.median()
        differ = ((sums - gradient_sums).abs() > tolerance).tolist()
        wrong = [name for name, position in positions.items() if differ[position]]
        stuck = [name for name in wrong if not self._owners.promote(name)]
        if stuck:
            raise EstimatorNotApplicable(
                "the derivative of the model itself does not account for the gradient of "
                f"{', '.join(stuck)}"
            )
        return not wrong

    def _rounding(self, outputs: Tensor) -> float:
        """The allowance of the coarsest dtype that the model computes in."""
        device = outputs.device.type
        dtypes = {outputs.dtype, *(p.dtype for p in self._model.parameters.values())}
        if torch.is_autocast_enabled(device):
            dtypes.add(torch.get_autocast_dtype(device))
        return max(_ROUNDING.get(dtype, 1e-2) for dtype in dtypes)


def _batch_axis(batch: Any, n_examples: int) -> tuple[int, int] | None:
    """Which tensor of a batch has N elements along which dimension; the first of several."""
    for index, tensor in enumerate(tensors_in(batch)):
        for axis, size in enumerate(tensor.shape):
            if size == n_examples:
                return index, axis
    return None
