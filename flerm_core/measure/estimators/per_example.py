"""`example`, the default: one draw gives a sample per example instead of one per batch.

ω is independent between examples, so E[c_n c_m] = 0 for n ≠ m with c_n = Δ_ℓφ_n, the part of φ's change that example n
contributes, and FSLR² = E[(Σ_n c_n)²] = E[Σ_n c_n²]: the same quantity as Eq. 2, from N samples instead of one. Module by
module c_n = ⟨δy_n, ∂φ/∂y_n⟩ with δy the change of the module's output under ΔW; only gradients of activations are needed,
none of weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flerm_core.errors import EstimatorNotApplicable, MeasurementError
from flerm_core.measure.autodiff.example_layout import Layout, half_of
from flerm_core.measure.autodiff.gradient_stream import is_reentrant, stream_gradients
from flerm_core.measure.autodiff.module_hooks import ModuleHooks, ModuleOutput
from flerm_core.measure.autodiff.module_products import (
    Use,
    closed_form,
    forward_mode,
    has_closed_form,
)
from flerm_core.measure.autodiff.sharded_products import find_split_layout, split_products
from flerm_core.measure.distributed.fsdp2 import recover
from flerm_core.measure.distributed.sharding import Sharding, local, placed_like
from flerm_core.measure.estimators.base import Estimator, OutputLayer
from flerm_core.measure.estimators.gradient_moments import sum_of_z
from flerm_core.measure.estimators.parameter_owners import Ownership
from flerm_core.measure.measured_model import MeasuredModel
from flerm_core.measure.output_projection import draw_projection, projection_scale, tensors_in
from flerm_core.measure.state_guard import RandomState
from flerm_core.measure.update.allgather import AllGather
from flerm_core.measure.update.weight_update import WeightUpdate

# Σ_n c_n and ⟨ΔW, ∂φ/∂W⟩ are equal up to rounding. A use that went unseen shows as an error of the size of its part.
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-2, torch.bfloat16: 0.15, torch.float16: 0.05}

_NOISE = 1e-4


class PerExample(Estimator):
    """The example estimator. Its first draw settles how the model is watched: which module answers for which tensor, which
    activations examples share, how the rows of each are laid out; and proves that no use of a tensor was missed.

    Raises `EstimatorNotApplicable` from that draw with the reason, when it does not apply.
    """

    name = "example"
    measures_depth_groups = True

    def __init__(self, model: MeasuredModel, output_layer: OutputLayer | None = None) -> None:
        super().__init__(model, output_layer)
        subject = model
        self._settled_for: tuple[bool, ...] = ()
        self._ownership = Ownership(subject.module, subject.parameters)
        self._positions = {name: i for i, name in enumerate(subject.parameters)}
        self._layouts: dict[ModuleOutput, Layout] = {}
        self._shared: dict[nn.Module, None] = {}
        self._deepest: set[ModuleOutput] = set()
        self._asked: list[str] = []  # the tensors whose ΔW the last pass asked for, in turn
        self._counts_examples: tuple[int, int] | None = (
            None  # which tensor of a batch, and which of its dimensions
        )
        self._watched_for: tuple[bool, ...] = ()  # as `settled`, for this rank
        self._unseen: frozenset[ModuleOutput] = (
            frozenset()
        )  # where the gradient was 0 throughout, so that any layout would have done
        self._look_again = False
        self._sharding = subject.sharding or Sharding()
        if self._sharding.split:
            self.reduction = "model_parallel"

    @property
    def n_statistics(self) -> int:
        """One per tensor and role."""
        return len(self.model.parameters) + len(self.model.depth_groups)

    @property
    def needs_discovery(self) -> bool:
        """Whether it is unknown how to watch the model: at first, and when a tensor was frozen or unfrozen."""
        return self._settled_for != self._trained()

    def end_discovery(self, *, uncertain: bool) -> None:
        """What the last draw found out holds from now on; until the next measurement only, where any rank is uncertain."""
        self._settled_for = self._trained()
        self._look_again = uncertain

    def begin_measurement(self) -> None:
        """A measurement begins. Where the last one settled what it could not see (the layout of LoRA's A while B is 0, or
        whether examples couple behind it), this one looks again; once for each set of places, as some never move."""
        if self._look_again:
            self._look_again = False
            self._settled_for = self._watched_for = ()

    def _trained(self) -> tuple[bool, ...]:
        return tuple(p.requires_grad for p in self.model.parameters.values())

    def draw(
        self, batch: Any, update: WeightUpdate, generator: torch.Generator
    ) -> tuple[Tensor, int]:
        """Σ_n c_n² of every tensor, then of every role (c_n summed over its tensors before squaring).

        Where ranks share the work on a batch: this rank's part of c, [tensors · N].

        A rank without examples settles nothing: it does so with the first that it gets.
        """
        if self._watched_for != self._trained():
            return self._settle(batch, update, generator)
        watch, outputs = self._forward(batch)
        changes = self._changes(watch, outputs, draw_projection(outputs, generator), update)
        return self._raw(changes, outputs), outputs.numel()

    def reduce_parts(self, parts: Tensor) -> Tensor:
        """Σ_n c_n² of every tensor and role."""
        if self.reduction != "model_parallel":
            return parts
        tensors = len(self._positions)
        return self._squares(parts.reshape(tensors, len(parts) // tensors))

    def _raw(self, changes: Tensor, outputs: Tensor) -> Tensor:
        """What `draw` gives, of c under the φ of this batch alone."""
        unit = projection_scale(outputs)
        return (
            (changes / unit).reshape(-1)
            if self.reduction == "model_parallel"
            else self._squares(changes) / unit**2
        )

    def fslrs(self, mean: NDArray[np.float64]) -> dict[str, float]:
        """The root of each mean."""
        return dict(
            zip(
                [*self.model.parameters, *self.model.depth_groups],
                np.sqrt(mean).tolist(),
                strict=True,
            )
        )

    def _forward(self, batch: Any) -> tuple[ModuleHooks, Tensor]:
        examples = 0
        if self._shared and self._counts_examples is not None:
            index, axis = self._counts_examples
            examples = list(tensors_in(batch))[index].shape[axis]
        watch = ModuleHooks(self._ownership.owners, self._shared, examples, self._deepest)
        with watch.attached():
            return watch, self.model.outputs(batch)

    def _changes(
        self, watch: ModuleHooks, outputs: Tensor, direction: Tensor, update: WeightUpdate
    ) -> Tensor:
        """c [tensors, N] float64."""
        examples = len(outputs)
        changes = torch.zeros(
            len(self._positions), examples, dtype=torch.float64, device=outputs.device
        )
        changes_of = AllGather(self._sharding, update, self._asked)

        def add(place: ModuleOutput, use: Use, gradient: Tensor) -> None:
            held = self._ownership.owners[use.module]
            layout = self._layout(place, examples)
            for tensor in dict.fromkeys(held.values()):
                change = changes_of.change(tensor)
                path = next(path for path, name in held.items() if name == tensor)
                if self._sharding.split:
                    first = self._sharding.first_of_split
                    products = split_products(use, path, change, gradient, first=first)
                elif "." not in path and has_closed_form(use.module):
                    products = closed_form(use, path, change, gradient)
                else:
                    products = forward_mode(use, held, tensor, change, place.index, gradient)
                if products is not None:
                    changes[self._positions[tensor]].add_(layout.by_example(products, examples))

        watch.backward(outputs, direction, add)
        self._asked = changes_of.asked
        return changes

    def _layout(self, place: ModuleOutput, examples: int) -> Layout:
        if examples == 1:
            return Layout("major")
        if place not in self._layouts:
            raise EstimatorNotApplicable(
                f"{type(place.module).__name__} ran more often than at first: its rows are unknown"
            )
        return self._layouts[place]

    def _squares(self, changes: Tensor) -> Tensor:
        roles = [
            changes[[self._positions[name] for name in members]].sum(0)
            for members in self.model.depth_groups.values()
        ]
        return torch.cat([changes, torch.stack(roles)] if roles else [changes]).square().sum(1)

    # The first draw

    def _settle(
        self, batch: Any, update: WeightUpdate, generator: torch.Generator
    ) -> tuple[Tensor, int]:
        """Each pass has a forward of its own, from the same masks: a graph that is kept for another pass holds what activation
        checkpointing recomputed for the last one."""
        self._deepest = set()
        masks = RandomState()
        watch, outputs = self._forward(batch)
        if not self._sharding.anywhere(len(outputs) > 0):
            return outputs.new_zeros(
                0 if self.reduction == "model_parallel" else self.n_statistics, dtype=torch.float64
            ), 0
        if self._sharding.anywhere(len(outputs) == 0):
            raise MeasurementError(
                "the first probe batch of a sharded model is empty: every rank needs examples to begin with"
            )
        if is_reentrant(outputs):
            raise EstimatorNotApplicable(
                "activation checkpointing with use_reentrant=True hides the modules inside it; use_reentrant=False does not"
            )
        plain = outputs.detach()
        self._counts_examples = _counter(batch, len(plain))
        direction = draw_projection(plain, generator)
        chosen = half_of(len(plain), generator).to(plain.device)
        expanded: list[nn.Module] = []  # every module that was tried as shared
        before = self._unseen
        while True:
            unclear = self._find_layouts(watch, outputs, direction, chosen)
            del watch, outputs
            if unclear is not None:
                self._clear_up(unclear, expanded)
            watch, outputs = self._forward_again(batch, plain, masks, expanded)
            if unclear is None:
                watch.deepest = self._deepest = watch.find_deepest()
                changes = self._changes(watch, outputs, direction, update)
                masks.restore()
                if self._prove(self.model.outputs(batch), direction, changes, update):
                    self._watched_for = self._trained()
                    self.discovery_uncertain = bool(self._unseen) and self._unseen != before
                    return self._raw(changes, plain), plain.numel()
                self._deepest = set()
                watch, outputs = self._forward_again(batch, plain, masks, expanded)

    def _forward_again(
        self, batch: Any, plain: Tensor, masks: RandomState, expanded: list[nn.Module]
    ) -> tuple[ModuleHooks, Tensor]:
        """The forward that gave `plain`, watched as is known by now."""
        while True:
            masks.restore()
            same = False
            try:
                watch, outputs = self._forward(batch)
                same = torch.equal(local(outputs), local(plain))
            except Exception:
                if not (expanded and expanded[-1] in self._shared):
                    raise
                recover(self.model.module)
            if not self._sharding.anywhere(not same):
                return watch, outputs
            # Whoever takes the shared output does not simply broadcast it: the next module up must answer.
            self._hand_up(expanded[-1])

    def _find_layouts(
        self, watch: ModuleHooks, outputs: Tensor, direction: Tensor, chosen: Tensor
    ) -> nn.Module | None:
        """Fills in the layout of every watched output; the first module of the forward where there is none."""
        examples = len(outputs)
        if examples == 1 and not self._sharding.parts:
            return None
        found: dict[ModuleOutput, Layout | None] = {}
        unseen: set[ModuleOutput] = set()

        def look(place: ModuleOutput, use: Use, gradient: Tensor) -> None:
            found[place] = find_split_layout(gradient, chosen)
            if not local(gradient).any():
                unseen.add(place)

        mask = chosen.reshape(-1, *[1] * (outputs.ndim - 1)).to(direction.dtype)
        watch.backward(outputs, direction * placed_like(direction, mask), look)
        self._sharding.agree_on_order(
            [(type(place.module).__name__, place.call, place.index) for place in found]
        )
        self._layouts = {place: layout for place, layout in found.items() if layout is not None}
        self._unseen = frozenset(unseen)
        unclear = self._sharding.total(
            torch.tensor([float(layout is None) for layout in found.values()], device=mask.device)
        )
        wrong = {place.module for place, flag in zip(found, unclear.tolist(), strict=True) if flag}
        return next((place.module for place in watch.edges if place.module in wrong), None)

    def _clear_up(self, module: nn.Module, expanded: list[nn.Module]) -> None:
        """`module`'s rows belong to no one example: examples share its output, or it mixes them."""
        if module not in expanded and self._counts_examples is not None:
            expanded.append(module)
            self._shared[module] = None
        else:
            self._hand_up(module)

    def _hand_up(self, module: nn.Module) -> None:
        """The next module up answers for the tensors of `module`, by its own derivative. For a few that is cheap."""
        self._shared.pop(module, None)
        tensors = set(self._ownership.owners[module].values())
        allowed = max(2, len(self._positions) // 10)
        few = len(self._ownership.promoted | tensors) <= allowed
        if not few or not all(self._ownership.promote(name) for name in sorted(tensors)):
            name = next(
                path for path, found in self.model.module.named_modules() if found is module
            )
            raise EstimatorNotApplicable(
                f"the rows of {name or 'the model'} ({type(module).__name__}) cannot be told apart by example: examples share "
                "statistics or are mixed (BatchNorm in train mode, routing), or dimension 0 of the output does not count them"
            )

    def _prove(
        self, outputs: Tensor, direction: Tensor, changes: Tensor, update: WeightUpdate
    ) -> bool:
        """Compares Σ_n c_n with ⟨ΔW, ∂φ/∂W⟩; hands tensors that differ to the next module up. True when nothing differs."""
        reference = torch.zeros_like(changes[:, 0])

        def consume(name: str, gradient: Tensor) -> None:
            reference[self._positions[name]] = sum_of_z(self.model, update, name, gradient)

        stream_gradients(outputs, direction, self.model, consume)
        summed, reference, squared = self._sharding.total(
            torch.stack([changes.sum(1), reference, changes.square().sum(1)])
        ).unbind()
        scale = squared.sqrt() + reference.abs()
        device = outputs.device.type
        computed = [torch.get_autocast_dtype(device)] if torch.is_autocast_enabled(device) else []
        dtypes = {outputs.dtype, *computed, *(p.dtype for p in self.model.parameters.values())}
        tolerance = max(_ROUNDING.get(dtype, 1e-2) for dtype in dtypes)
        # A tensor that moves nothing (a bias before BatchNorm) is all rounding: only what counts beside the others is compared.
        floor = _NOISE * scale.median()
        off = ((summed - reference).abs() > tolerance * scale + floor).tolist()
        wrong = [name for name, position in self._positions.items() if off[position]]
        stuck = [name for name in wrong if not self._ownership.promote(name)]
        if stuck:
            raise EstimatorNotApplicable(
                f"the derivative of the model itself does not account for the gradient of {', '.join(stuck)}"
            )
        return not wrong


def _counter(batch: Any, examples: int) -> tuple[int, int] | None:
    """Which tensor of a batch counts the examples along which of its dimensions; None where none does."""
    for index, tensor in enumerate(tensors_in(batch)):
        for axis, size in enumerate(tensor.shape):
            if size == examples:
                return index, axis
    return None
