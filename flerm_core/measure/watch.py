"""One forward with modules watched: every use of them, and the gradient of every output of each use."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from flerm_core.measure.local import Use, has_closed_form
from flerm_core.measure.projection import floating_tensors
from flerm_core.measure.untouched import RandomState

Hear = Callable[["Place", Use, Tensor], None]


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor of a forward: output `index` of the `call`-th call of `module`."""

    module: nn.Module
    call: int
    index: int


class Watch:
    """Hooks on `modules` for one forward, and as many backward passes through it as wanted.

    An output of a module in `shared` is the same for all examples (a position embedding), and there its gradient is their
    sum. It is handed on expanded along a new or unit dimension 0, one row for each of `examples`: the same values to whoever
    broadcasts it, but a gradient for each example. `deepest`: the answer of `find_deepest` for an earlier forward.
    """

    def __init__(
        self,
        modules: Collection[nn.Module],
        shared: Collection[nn.Module] = (),
        examples: int = 0,
        deepest: Collection[Place] = (),
    ) -> None:
        self._modules = modules
        self._shared = shared
        self._examples = examples
        self._calls: dict[nn.Module, int] = {}
        self._entered: dict[nn.Module, RandomState] = {}
        self._listening = False
        self._hear: Hear | None = None
        self.edges: dict[Place, GradientEdge] = {}
        self.deepest = deepest

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The forward to watch runs inside."""
        handles = []
        for module in self._modules:
            if not has_closed_form(module):
                handles.append(module.register_forward_pre_hook(self._enter))
            # First of all hooks: what others make of an output (tensor parallel's move it) is not the module's.
            handles.append(module.register_forward_hook(self._leave, with_kwargs=True, prepend=True))
        self._listening = True
        try:
            yield
        finally:
            self._listening = False
            for handle in handles:
                handle.remove()

    def backward(self, outputs: Tensor, direction: Tensor, hear: Hear, *, keep: bool = False) -> None:
        """Sends `direction` back through the graph; `hear` is told of every watched output's gradient on the way."""
        if not self.edges:
            return
        # A pass collects the gradients of the edges it is asked for and frees all others at once. Asked for are only those that
        # no other watched edge lies behind: the rest are on the way to them.
        deepest = [edge for place, edge in self.edges.items() if place in (self.deepest or self.edges)]
        self._hear = hear
        try:
            torch.autograd.grad(outputs, deepest, direction, retain_graph=keep, allow_unused=True)
        finally:
            self._hear = None
            if not keep:
                self.release()

    def release(self) -> None:
        """Lets go of the forward's graph. Its hooks hold this watch, and through `edges` the graph would hold itself, with all
        activations, until the next garbage collection."""
        self.edges = {}
        self._entered.clear()

    def find_deepest(self) -> set[Place]:
        """The watched places that have no watched place behind them, towards the inputs."""
        watched = {edge.node for edge in self.edges.values()}
        behind: dict[Any, bool] = {}  # node to: is a watched node among those it hands gradients to, or theirs?
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

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Any:
        if not self._listening:
            return None
        call = self._calls[module] = self._calls.get(module, -1) + 1
        use = Use(module, args, dict(kwargs), self._entered.pop(module, None))
        replaced = isinstance(result, Tensor) and module in self._shared
        if replaced:
            rows = result if result.shape[0] == 1 else result.unsqueeze(0)
            result = rows.expand(self._examples, *rows.shape[1:])
        for index, output in enumerate(floating_tensors(result)):
            if output.requires_grad:
                place = Place(module, call, index)
                self.edges[place] = get_gradient_edge(output)
                output.register_hook(self._listener(place, use))
        return result if replaced else None

    def _listener(self, place: Place, use: Use) -> Callable[[Tensor], None]:
        def listen(gradient: Tensor) -> None:
            if self._hear is not None:
                with torch.no_grad():
                    self._hear(place, use, gradient)

        return listen
