"""`example`, the default: one draw gives a sample per example instead of one per batch.

ω is independent between examples, so E[c_n c_m] = 0 for n ≠ m with c_n = Δ_ℓφ_n, the part of φ's change that example n
contributes, and FSLR² = E[(Σ_n c_n)²] = E[Σ_n c_n²]: the same quantity as Eq. 2, from N samples instead of one. Module by
module c_n = ⟨δy_n, ∂φ/∂y_n⟩ with δy the change of the module's output under ΔW; only gradients of activations are needed,
none of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from flerm_core.errors import MeasurementError
from flerm_core.measure.estimator import Estimator, Subject
from flerm_core.measure.gradients import stream_gradients
from flerm_core.measure.layout import Layout, find_layout, half_of
from flerm_core.measure.local import Use, closed_form, forward_mode, has_closed_form
from flerm_core.measure.ownership import Ownership
from flerm_core.measure.projection import draw_projection, floating_tensors
from flerm_core.measure.untouched import RandomState
from flerm_core.measure.update import Update

# Σ_n c_n and ⟨ΔW, ∂φ/∂W⟩ are equal up to rounding. A use that went unseen shows as an error of the size of its part.
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-2, torch.bfloat16: 0.15, torch.float16: 0.05}

_Place = tuple[nn.Module, int, int]  # module, which of its calls, which of its outputs


class ExamplesCouple(MeasurementError):
    """An example's output depends on other examples' rows, or the model does not let us see which rows are whose."""


class _Watch:
    """One forward with the owners watched: every use of theirs, and a gradient edge for every output of each use."""

    def __init__(self, ownership: Ownership) -> None:
        self._ownership = ownership
        self._calls: dict[nn.Module, int] = {}
        self._entered: dict[nn.Module, RandomState] = {}
        self._listening = False
        self.edges: list[GradientEdge] = []
        self._hear: Callable[[_Place, Use, Tensor], None] | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        handles = []
        for module in self._ownership.owners:
            if not has_closed_form(module):
                handles.append(module.register_forward_pre_hook(self._enter))
            handles.append(module.register_forward_hook(self._leave, with_kwargs=True))
        self._listening = True
        try:
            yield
        finally:
            self._listening = False
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        if self._listening:
            self._entered[module] = RandomState()

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if not self._listening:
            return
        call = self._calls[module] = self._calls.get(module, -1) + 1
        use = Use(module, args, kwargs, self._entered.pop(module, None))
        for index, output in enumerate(floating_tensors(result)):
            if output.requires_grad:
                self.edges.append(get_gradient_edge(output))
                output.register_hook(self._listener((module, call, index), use))

    def _listener(self, place: _Place, use: Use) -> Callable[[Tensor], None]:
        def listen(gradient: Tensor) -> None:
            if self._hear is not None:
                with torch.no_grad():
                    self._hear(place, use, gradient)

        return listen

    def backward(
        self, outputs: Tensor, direction: Tensor, hear: Callable[[_Place, Use, Tensor], None], *, keep: bool = False
    ) -> None:
        """Sends `direction` back through the graph; `hear` is told of every watched output's gradient on the way."""
        if self.edges:
            self._hear = hear
            try:
                torch.autograd.grad(outputs, self.edges, direction, retain_graph=keep, allow_unused=True)
            finally:
                self._hear = None


class Example(Estimator):
    """The example estimator. Its first draw finds out the layout of every activation and proves that no use was missed.

    Raises `ExamplesCouple` from that draw with the reason, when it does not apply.
    """

    name = "example"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._ownership = Ownership(subject.model, subject.parameters)
        self._layouts: dict[_Place, Layout] = {}
        self.proven = False
        self._positions = {name: i for i, name in enumerate(subject.parameters)}

    @property
    def columns(self) -> int:
        """One per tensor and role."""
        return len(self.subject.parameters) + len(self.subject.roles)

    def draw(self, batch: Any, update: Update, generator: torch.Generator) -> tuple[Tensor, int]:
        """Σ_n c_n² of every tensor, then of every role (c_n summed over its tensors before squaring)."""
        began = None if self.proven else (RandomState(), generator.get_state())
        while True:
            watch = _Watch(self._ownership)
            with watch.attached():
                outputs = self.subject.outputs(batch)
            direction = draw_projection(outputs, generator)
            if not self.proven:
                self._find_layouts(watch, outputs, direction, generator)
            changes = self._changes(watch, outputs, direction, update)
            if self.proven or self._prove(changes, outputs, direction, update):
                return self._squares(changes), outputs.numel()
            assert began is not None
            began[0].restore()  # the same masks and projection once more, with other owners
            generator.set_state(began[1])

    def _find_layouts(self, watch: _Watch, outputs: Tensor, direction: Tensor, generator: torch.Generator) -> None:
        examples = len(outputs)
        chosen = half_of(examples, generator).to(outputs.device)
        coupled: list[nn.Module] = []

        def look(place: _Place, use: Use, gradient: Tensor) -> None:
            layout = find_layout(gradient, chosen)
            if layout is None:
                coupled.append(use.module)
            else:
                self._layouts[place] = layout

        if examples > 1:
            masked = direction * chosen.reshape(-1, *[1] * (outputs.ndim - 1)).to(direction.dtype)
            watch.backward(outputs, masked, look, keep=True)
        if coupled:
            name = next(path for path, module in self.subject.model.named_modules() if module is coupled[-1])
            kind = type(coupled[-1]).__name__
            raise ExamplesCouple(
                f"the rows of {name or 'the model'} ({kind}) cannot be told apart by example: examples share statistics or "
                "are mixed (BatchNorm in train mode, routing), or dimension 0 of the output does not count them"
            )

    def _changes(self, watch: _Watch, outputs: Tensor, direction: Tensor, update: Update) -> Tensor:
        """c [tensors, N] float64."""
        examples = len(outputs)
        changes = torch.zeros(len(self._positions), examples, dtype=torch.float64, device=outputs.device)

        def add(place: _Place, use: Use, gradient: Tensor) -> None:
            held = self._ownership.owners[use.module]
            layout = self._layout(place, gradient, examples)
            for tensor in dict.fromkeys(held.values()):
                change = update.change(tensor)
                path = next(path for path, name in held.items() if name == tensor)
                if "." not in path and has_closed_form(use.module):
                    products = closed_form(use, path, change, gradient)
                else:
                    products = forward_mode(use, held, tensor, change, place[2], gradient)
                changes[self._positions[tensor]] += layout.by_example(products, examples)

        watch.backward(outputs, direction, add, keep=not self.proven)
        return changes

    def _layout(self, place: _Place, gradient: Tensor, examples: int) -> Layout:
        if examples == 1:
            return Layout("major")
        if place not in self._layouts:
            raise ExamplesCouple(
                f"{type(place[0]).__name__} ran more often than at the first measurement: its rows are unknown"
            )
        return self._layouts[place]

    def _prove(self, changes: Tensor, outputs: Tensor, direction: Tensor, update: Update) -> bool:
        """Compares Σ_n c_n with ⟨ΔW, ∂φ/∂W⟩; hands tensors that differ to the next module up. True when nothing differs."""
        reference = torch.zeros_like(changes[:, 0])

        def consume(name: str, gradient: Tensor) -> None:
            reference[self._positions[name]] = update.change(name).mul_(gradient).sum(dtype=torch.float64)

        stream_gradients(outputs, direction, self.subject.parameters, consume)
        scale = changes.square().sum(1).sqrt() + reference.abs()
        off = ((changes.sum(1) - reference).abs() > self._tolerance() * scale).tolist()
        wrong = [name for name, position in self._positions.items() if off[position]]
        stuck = [name for name in wrong if not self._ownership.promote(name)]
        if stuck:
            raise ExamplesCouple(f"the derivative of the model itself does not account for the gradient of {', '.join(stuck)}")
        return not wrong

    def _tolerance(self) -> float:
        return max(_ROUNDING.get(p.dtype, 1e-2) for p in self.subject.parameters.values())

    def _squares(self, changes: Tensor) -> Tensor:
        roles = [changes[[self._positions[name] for name in members]].sum(0) for members in self.subject.roles.values()]
        return torch.cat([changes, torch.stack(roles)] if roles else [changes]).square().sum(1)

    def fslrs(self, mean: NDArray[np.float64]) -> dict[str, float]:
        """The root of each mean."""
        return dict(zip([*self.subject.parameters, *self.subject.roles], np.sqrt(mean).tolist(), strict=True))
