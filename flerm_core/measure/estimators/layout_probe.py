"""Finds out how a model is observed example by example, on a probe batch.

To be found out: which module answers for which tensor, which activations all examples share, and
where the rows of each example are. `LayoutProbe.discover` lists the steps.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flerm_core.errors import EstimatorNotApplicable, MeasurementError, join_names
from flerm_core.measure.autodiff.example_layout import Layout, has_gradient, random_half
from flerm_core.measure.autodiff.gradient_stream import is_reentrant, stream_gradients
from flerm_core.measure.autodiff.local_derivatives import NoDerivative
from flerm_core.measure.autodiff.module_hooks import ModuleHooks, ModuleOutput, takes_hooks
from flerm_core.measure.autodiff.module_products import ModuleCall
from flerm_core.measure.autodiff.sharded_products import find_sharded_layout
from flerm_core.measure.distributed.fsdp2 import reset_after_error
from flerm_core.measure.distributed.sharding import sharded_like, to_local
from flerm_core.measure.estimators.example_contributions import ExampleContributions
from flerm_core.measure.estimators.gradient_moments import sum_of_z
from flerm_core.measure.output_projection import draw_projection, tensors_in
from flerm_core.measure.state_guard import ForwardStart
from flerm_core.measure.update.weight_update import WeightUpdate

_COUPLED = (
    "its rows cannot be told apart by example: examples share statistics or are mixed (BatchNorm "
    "in train mode, routing), or dimension 0 of the output does not count them"
)


class LayoutProbe:
    """Fills in the `HookPlan` and the `ParameterOwners` of `contributions`.

    Each discovery adds to what earlier ones found, because forwards may differ in what runs.
    """

    def __init__(self, contributions: ExampleContributions) -> None:
        self._contributions = contributions
        self._model = contributions.model
        self._sharding = contributions.sharding
        self._plan = contributions.plan
        self._owners = contributions.owners
        self._used_tensors: set[str] = set()  # the tensors that were seen to move φ

    def discover(
        self, batch: Any, update: WeightUpdate, generator: torch.Generator
    ) -> tuple[Tensor, Tensor] | None:
        """Finds out how every module is observed. Then returns c [tensors, N] and the outputs.

        c holds the contribution of each example of `batch` to each tensor's Δφ.

        1. Run the forward with hooks, and find the layout of every output (`example_layout`).
        2. Where an output has no layout, either all examples share the output, or its module mixes
           them. First take the output as shared: expand it to the examples. Where that fails,
           observe the module's parent instead. Then go to 1.
        3. Compute c. Where a module cannot be differentiated (`LocalDerivatives`), observe its
           parent instead, and go to 1.
        4. Compare Σ_n c_n with ⟨ΔW, ∂φ/∂W⟩ (Eq. 4) from a plain backward. Where they differ, a use
           of the tensor went unobserved: observe the owner's parent instead, and go to 1.

        Every backward pass has a forward of its own, from the same random state and buffers. A
        graph that is kept for a second pass would keep all that activation checkpointing
        recomputed in the first.

        Returns None where no rank's batch has examples, and c that is not finite, without a look,
        where outputs and gradients are not finite. Raises `EstimatorNotApplicable` with the
        reason where examples cannot be told apart, and `MeasurementError` where only some ranks of
        a sharded model have examples.
        """
        self._check_modules()
        shared_before, self._plan.shared = self._plan.shared, {}
        start = ForwardStart(self._model.module, self._model.written)
        hooks, outputs = self._contributions.forward(batch)
        if not self._sharding.any_rank(len(outputs) > 0):
            return None
        self._check_batch(outputs)
        reference = outputs.detach()
        self._plan.batch_axis = _batch_axis(batch, len(reference))
        direction = draw_projection(reference, generator)
        if self._sharding.any_rank(not bool(to_local(reference).isfinite().all())):
            del hooks, outputs
            sums = self._sums_if_not_finite(batch, start, direction, update)
            if sums is not None:
                return sums.unsqueeze(1).expand(-1, len(reference)), reference
            start.restore()
            hooks, outputs = self._contributions.forward(batch)
        chosen = random_half(len(reference), generator).to(reference.device)
        tried_as_shared: list[nn.Module] = []
        while True:
            unclear = self._find_layouts(hooks, outputs, direction, chosen)
            del hooks, outputs  # their graph is used up
            if unclear is not None:
                self._resolve_unclear(unclear, tried_as_shared)
            hooks, outputs = self._forward_again(batch, reference, start, tried_as_shared)
            if unclear is None:
                found = self._compute(hooks, outputs, direction, update)
                if found is not None:
                    wrong = self.unexplained(batch, start, direction, found, update)
                    if not wrong:
                        ran = {output.module for output in hooks.edges}
                        self._plan.shared |= dict.fromkeys(m for m in shared_before if m not in ran)
                        return found, reference
                    self._promote(wrong)
                hooks, outputs = self._forward_again(batch, reference, start, tried_as_shared)

    def _sums_if_not_finite(
        self, batch: Any, start: ForwardStart, direction: Tensor, update: WeightUpdate
    ) -> Tensor | None:
        """⟨ΔW, ∂φ/∂W⟩ [tensors] where a value of any rank is not finite; else None.

        Outputs that are constant, as a mask's, have no part in these sums.
        """
        reset_after_error(self._model.module)
        sums, _ = self._gradient_sums(batch, start, direction, update)
        return sums if self._sharding.any_rank(not bool(sums.isfinite().all())) else None

    def _compute(
        self, hooks: ModuleHooks, outputs: Tensor, direction: Tensor, update: WeightUpdate
    ) -> Tensor | None:
        """c [tensors, N].

        Where a module has no derivative, returns None, and has the module's parent observed.
        """
        try:
            return self._contributions.backward(hooks, outputs, direction, update)[0]
        except NoDerivative as error:
            reset_after_error(self._model.module)
            self._promote_to_parent(error.module, f"it has no derivative ({error.reason})")
            return None

    def _check_modules(self) -> None:
        for module, held in self._owners.owners.items():
            if not takes_hooks(module):
                raise EstimatorNotApplicable(
                    f"{join_names(held.values(), most=3)} are tensors of a module of torch.jit, "
                    "which takes no hooks"
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
        start: ForwardStart,
        tried_as_shared: list[nn.Module],
    ) -> tuple[ModuleHooks, Tensor]:
        """A forward from `start`, whose outputs equal `reference` on all ranks.

        Where the outputs differ, or the forward raises, the reason is the module whose output was
        expanded last: another module does more with the output than broadcast it. The module's
        parent is then observed instead. Where no output is expanded and the outputs differ, the
        model's kernels or state vary from forward to forward. The later comparison with gradients
        shows whether that matters.
        """
        while True:
            start.restore()
            is_equal = False
            is_shared = bool(tried_as_shared) and tried_as_shared[-1] in self._plan.shared
            try:
                hooks, outputs = self._contributions.forward(batch)
                is_equal = _equal(to_local(outputs), to_local(reference))
            except Exception:
                if not is_shared:
                    raise
                reset_after_error(self._model.module)
            if not is_shared or not self._sharding.any_rank(not is_equal):
                return hooks, outputs
            self._promote_to_parent(tried_as_shared[-1], _COUPLED)

    def _find_layouts(
        self, hooks: ModuleHooks, outputs: Tensor, direction: Tensor, chosen: Tensor
    ) -> nn.Module | None:
        """Fills in the layout of every observed output.

        Returns the first module of the forward whose output has no layout on some rank. Returns
        None where all outputs have one.

        chosen: the half of the examples whose ω is not zero, bool [N].
        """
        if len(outputs) == 1 and not self._sharding.shards:
            self._keep_layouts(dict.fromkeys(hooks.edges, Layout("single")), set(), hooks, 1)
            return None
        found: dict[ModuleOutput, Layout | None] = {}
        idle: set[ModuleOutput] = set()

        def find(output: ModuleOutput, call: ModuleCall, gradient: Tensor) -> None:
            found[output] = find_sharded_layout(gradient, chosen)
            if not has_gradient(to_local(gradient)).any():
                idle.add(output)

        mask = chosen.reshape(-1, *[1] * (outputs.ndim - 1)).to(direction.dtype)
        hooks.backward(outputs, direction * sharded_like(direction, mask), find)
        self._sharding.check_order(
            [(type(each.module).__name__, each.call, each.index) for each in found]
        )
        unused = {each: Layout("unused") for each in hooks.edges if each not in found}
        self._keep_layouts(found | unused, idle | unused.keys(), hooks, len(outputs))
        missing = self._sharding.sum_world(
            torch.tensor([float(layout is None) for layout in found.values()], device=mask.device)
        )
        modules = {
            output.module for output, flag in zip(found, missing.tolist(), strict=True) if flag
        }
        return next((output.module for output in hooks.edges if output.module in modules), None)

    def _keep_layouts(
        self,
        found: Mapping[ModuleOutput, Layout | None],
        idle: Collection[ModuleOutput],
        hooks: ModuleHooks,
        n_examples: int,
    ) -> None:
        """Adds the layouts that one backward pass showed to the plan.

        A pass shows little about an idle output, or with a single example. In these cases a layout
        from an earlier pass that still fits is kept.
        """
        layouts = self._plan.layouts
        for output, layout in found.items():
            if output in idle or layout == Layout("single"):
                known = layouts.get(output)
                if known is not None and known.fits(hooks.shapes[output], n_examples):
                    continue
            layouts.pop(output, None)
            self._plan.idle_outputs.discard(output)
            if layout is not None:
                layouts[output] = layout
                if output in idle:
                    self._plan.idle_outputs.add(output)

    def _resolve_unclear(self, module: nn.Module, tried_as_shared: list[nn.Module]) -> None:
        """Takes the output of `module` as shared; where that was tried, observes the parent."""
        if module not in tried_as_shared and self._plan.batch_axis is not None:
            tried_as_shared.append(module)
            self._plan.shared[module] = None
        else:
            self._promote_to_parent(module, _COUPLED)

    def _promote_to_parent(self, module: nn.Module, reason: str) -> None:
        """From now on the parent of `module` answers for the module's tensors.

        The parent has to be differentiated, which costs more than a closed form. The total is
        limited to one forward-mode pass of the whole model for a tenth of the tensors (at least
        four passes). Raises `EstimatorNotApplicable` with `reason` beyond that limit, or where
        `module` has no parent.
        """
        self._plan.shared.pop(module, None)
        tensors = set(self._owners.owners[module].values())
        allowed = max(4, len(self._contributions.positions) // 10)
        is_owned = all(self._owners.promote(name) for name in sorted(tensors))
        if not is_owned or self._cost_of_promoted() > allowed:
            name = next(path for path, each in self._model.module.named_modules() if each is module)
            raise EstimatorNotApplicable(
                f"{name or 'the model'} ({type(module).__name__}): {reason}"
            )

    def _cost_of_promoted(self) -> float:
        """About how many forward-mode passes of the whole model the promoted tensors cost.

        The cost of a pass of one module is taken to be the module's share of the model's
        parameters. Embedding tables are left out, because their size says nothing about their cost.
        """
        total = _size(self._model.module)
        return sum(
            _size(owner) / total if total else 1.0
            for owner, held in self._owners.owners.items()
            for name in self._owners.promoted.intersection(held.values())
        )

    def unexplained(
        self,
        batch: Any,
        start: ForwardStart,
        direction: Tensor,
        contributions: Tensor,
        update: WeightUpdate,
    ) -> list[str]:
        """The tensors for which Σ_n c_n is not ⟨ΔW, ∂φ/∂W⟩ of a plain forward and backward.

        Also notes in the plan which tensors have not moved φ yet.

        batch: the probe batch that gave `contributions`.
        start: the start of the forward that gave them.
        direction: ∂φ/∂f [N, ...].
        contributions: c [tensors, N].
        update: ΔW of each tensor.
        """
        positions = self._contributions.positions
        gradient_sums, outputs = self._gradient_sums(batch, start, direction, update)
        wrong, negligible = self._contributions.compare(contributions, gradient_sums, outputs)
        self._used_tensors |= positions.keys() - negligible
        self._plan.idle_tensors = positions.keys() - self._used_tensors
        return wrong

    def _gradient_sums(
        self, batch: Any, start: ForwardStart, direction: Tensor, update: WeightUpdate
    ) -> tuple[Tensor, Tensor]:
        """⟨ΔW, ∂φ/∂W⟩ of every tensor [tensors], by a plain forward and backward; the outputs."""
        positions = self._contributions.positions
        sums = torch.zeros(len(positions), dtype=torch.float64, device=direction.device)

        def add(name: str, gradient: Tensor) -> None:
            sums[positions[name]] = sum_of_z(self._model, update, name, gradient)

        start.restore()
        outputs = self._model.outputs(batch)
        stream_gradients(outputs, direction, self._model, add)
        return sums, outputs

    def _promote(self, tensors: list[str]) -> None:
        """Moves `tensors` to the parents of their owners.

        Raises `EstimatorNotApplicable` where the model itself owns one already.
        """
        stuck = [name for name in tensors if not self._owners.promote(name)]
        if stuck:
            raise EstimatorNotApplicable(
                "the derivative of the model itself does not account for the gradient of "
                f"{', '.join(stuck)}"
            )


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether all elements are the same; NaN is the same as NaN."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)


def _size(module: nn.Module) -> int:
    """The number of elements of all parameters in `module`, embeddings left out."""
    tables = {
        id(p)
        for each in module.modules()
        if isinstance(each, nn.Embedding)
        for p in each.parameters()
    }
    return sum(p.numel() for p in module.parameters() if id(p) not in tables)


def _batch_axis(batch: Any, n_examples: int) -> tuple[int, int] | None:
    """The first tensor of a batch, by its number, with a dimension of N elements; and which one."""
    for index, tensor in enumerate(tensors_in(batch)):
        for axis, size in enumerate(tensor.shape):
            if size == n_examples:
                return index, axis
    return None
