"""One forward with modules watched: every use of them, and the gradient of every output of each use.

Neither outputs nor inputs are held beyond what training holds of them (`kept`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from flerm_core.measure.autodiff.module_products import Use, has_closed_form
from flerm_core.measure.autodiff.saved_inputs import SavedInputs
from flerm_core.measure.output_projection import floating_tensors
from flerm_core.measure.state_guard import RandomState

Hear = Callable[["ModuleOutput", Use, Tensor], None]


@dataclass(frozen=True, slots=True)
class ModuleOutput:
    """A tensor of a forward: output `index` of the `call`-th call of `module`."""

    module: nn.Module
    call: int
    index: int


class ModuleHooks:
    """Hooks on `modules` for one forward and one backward pass through it.

    An output of a module in `shared` is the same for all examples (a position embedding), and there its gradient is their
    sum. It is handed on expanded along a new or unit dimension 0, one row for each of `examples`: the same values to whoever
    broadcasts it, but a gradient for each example. `deepest`: the answer of `find_deepest` for an earlier forward.
    """

    def __init__(
        self,
        modules: Collection[nn.Module],
        shared: Collection[nn.Module] = (),
        examples: int = 0,
        deepest: Collection[ModuleOutput] = (),
    ) -> None:
        self._modules = modules
        self._shared = shared
        self._examples = examples
        self._calls: dict[nn.Module, int] = {}
        self._entered: dict[nn.Module, RandomState] = {}
        self._listening = False
        self._ear = _GradientSink()
        self.edges: dict[ModuleOutput, GradientEdge] = {}
        self.deepest = deepest

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The forward to watch runs inside."""
        handles = []
        for module in self._modules:
            if not has_closed_form(module):
                handles.append(module.register_forward_pre_hook(self._enter))
            # First of all hooks: what others make of an output (tensor parallel's move it) is not the module's.
            handles.append(
                module.register_forward_hook(self._leave, with_kwargs=True, prepend=True)
            )
        self._listening = True
        try:
            yield
        finally:
            self._listening = False
            for handle in handles:
                handle.remove()

    def backward(self, outputs: Tensor, direction: Tensor, hear: Hear) -> None:
        """Sends `direction` back through the graph, once; `hear` is told of every watched output's gradient on the way."""
        if not self.edges:
            return
        # A pass collects the gradients of the edges it is asked for and frees all others at once. Asked for are only those that
        # no other watched edge lies behind: the rest are on the way to them.
        deepest = self.deepest or self.find_deepest()
        # What checkpoints run again saves what it saved before.
        handles = [
            module.register_forward_hook(self._again, with_kwargs=True, prepend=True)
            for module in self._modules
        ]
        self._ear.hear = hear
        try:
            torch.autograd.grad(
                outputs, [self.edges[place] for place in deepest], direction, allow_unused=True
            )
        finally:
            self._ear.hear = None
            for handle in handles:
                handle.remove()

    def find_deepest(self) -> set[ModuleOutput]:
        """The watched places that have no watched place behind them, towards the inputs."""
        watched = {edge.node for edge in self.edges.values()}
        behind: dict[
            Any, bool
        ] = {}  # node to: is a watched node among those it hands gradients to, or theirs?
        stack = [(node, False) for node in watched]
        while stack:
            node, expanded = stack.pop()
            following = [after for after, _ in node.next_functions if after is not None]
            if expanded:
                behind[node] = any(after in watched or behind[after] for after in following)
            elif node not in behind:
                stack.append((node, True))
                stack += [(after, False) for after in following if after not in behind]
        return {place for place, edge in self.edges.items() if not behind[edge.node]}

    def _enter(self, module: nn.Module, args: Any) -> None:
        if self._listening:
            self._entered[module] = RandomState()

    def _leave(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> Any:
        if not self._listening:
            return None
        call = self._calls[module] = self._calls.get(module, -1) + 1
        use = Use(module, randomness=self._entered.pop(module, None))
        replaced = isinstance(result, Tensor) and module in self._shared
        if replaced:
            result = self._expanded(result)
        for index, output in enumerate(floating_tensors(result)):
            if output.requires_grad:
                place = ModuleOutput(module, call, index)
                self.edges[place] = get_gradient_edge(output)
                output.register_hook(_listener(self._ear, place, use, SavedInputs(args, kwargs)))
        return result if replaced else None

    def _again(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> Any:
        replaced = isinstance(result, Tensor) and module in self._shared
        if replaced:
            result = self._expanded(result)
        for output in floating_tensors(result):
            if output.requires_grad:
                SavedInputs(args, kwargs)
        return result if replaced else None

    def _expanded(self, output: Tensor) -> Tensor:
        rows = output if output.shape[0] == 1 else output.unsqueeze(0)
        return rows.expand(self._examples, *rows.shape[1:])


@dataclass(slots=True)
class _GradientSink:
    """Who listens to the pass under way, if any. Hooks know this and not the watch: that has the graph, which has the hooks,
    and a ring would keep it all until a garbage collection."""

    hear: Hear | None = None


def _listener(
    ear: _GradientSink, place: ModuleOutput, use: Use, kept: SavedInputs
) -> Callable[[Tensor], None]:
    def listen(gradient: Tensor) -> None:
        if ear.hear is not None:
            args, kwargs = kept.take()
            with torch.no_grad():
                ear.hear(place, replace(use, args=args, kwargs=kwargs), gradient)

    return listen
