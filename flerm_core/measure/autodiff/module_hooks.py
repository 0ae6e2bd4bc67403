"""One forward with hooks on modules, and one backward that gives the gradients of their outputs.

The hooks hold neither outputs nor inputs longer than training itself does (`saved_inputs`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from flerm_core.measure.autodiff.module_products import ModuleCall, has_closed_form
from flerm_core.measure.autodiff.module_replay import CallStart
from flerm_core.measure.autodiff.saved_inputs import SavedInputs
from flerm_core.measure.autodiff.structure import replace_instances
from flerm_core.measure.output_projection import floating_tensors, holds_tensors

OnGradient = Callable[["ModuleOutput", ModuleCall, Tensor], None]


@dataclass(frozen=True, slots=True)
class ModuleOutput:
    """Names a tensor of a forward: output `index` of call number `call` of `module`, all from 0."""

    module: nn.Module
    call: int
    index: int


class ModuleHooks:
    """Hooks on `modules` for one forward, and for one backward pass through its graph.

    modules: the modules whose outputs are observed, each with the paths of its tensors.
    shared: the modules among these whose output is the same for all examples (a position
        embedding). The gradient of such an output is the sum over the examples. So the output is
        expanded to one row per example: along dimension 0 where its size is 1, else along a new
        dimension 0. Modules that broadcast the output compute the same values as before, but each
        example then has a gradient of its own.
    n_examples: how many rows the outputs of `shared` get.
    known_earliest: the result of `find_earliest` in an earlier forward. It is used again where the
        same outputs come in the same order.

    `edges` are the observed outputs in the order of the forward, and `shapes` their shapes.
    """

    def __init__(
        self,
        modules: Mapping[nn.Module, Collection[str]],
        shared: Collection[nn.Module] = (),
        n_examples: int = 0,
        known_earliest: KnownEarliest | None = None,
    ) -> None:
        self._modules = modules
        self._shared = shared
        self._n_examples = n_examples
        self._last_call: dict[nn.Module, int] = {}
        # The running calls of each module, innermost last, because a module may call itself.
        self._running: dict[nn.Module, list[_RunningCall]] = {}
        self._forward_running = False
        self._sink = _GradientSink()
        self.edges: dict[ModuleOutput, GradientEdge] = {}
        self.shapes: dict[ModuleOutput, torch.Size] = {}
        self.known_earliest = known_earliest or KnownEarliest()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Attaches the hooks. The caller runs the forward inside."""
        handles = self._watch_starts()
        for module in self._modules:
            # This hook comes before all others, because others may change the module's own output
            # (tensor parallel redistributes it).
            handles.append(
                module.register_forward_hook(self._after_forward, with_kwargs=True, prepend=True)
            )
        self._forward_running = True
        try:
            yield
        finally:
            self._forward_running = False
            for handle in handles:
                handle.remove()

    def backward(
        self,
        outputs: Tensor,
        direction: Tensor,
        on_gradient: OnGradient,
        tensors: Sequence[Tensor] = (),
    ) -> list[Tensor | None]:
        """Sends `direction` = ∂φ/∂f back through the graph, once.

        `on_gradient` is called with each observed output, its call and its gradient, as the pass
        reaches the output. Returns the gradients of `tensors`, with None in place of the gradient
        of a tensor that φ does not depend on.
        """
        if not self.edges and not tensors:
            return []
        # Autograd keeps the gradients of the requested edges until the pass ends, and frees all
        # others at once. So only the earliest edges are requested: on the way there, the pass
        # reaches all edges. They are found anew where another set or order of modules ran than in
        # the forward before (layer drop).
        known = self.known_earliest
        if known.order != tuple(self.edges):
            known.order, known.earliest = tuple(self.edges), tuple(self.find_earliest())
        wanted = [self.edges[each] for each in known.earliest]
        # Checkpointed modules run again in this pass, and must save the same tensors as before.
        handles = self._watch_starts()
        handles += [
            module.register_forward_hook(self._after_recomputation, with_kwargs=True, prepend=True)
            for module in self._modules
        ]
        self._sink.on_gradient = on_gradient
        try:
            inputs: Sequence[Any] = [*wanted, *tensors]  # tensors and edges may be mixed
            gradients = torch.autograd.grad(outputs, inputs, direction, allow_unused=True)
            return list(gradients[len(wanted) :])
        finally:
            self._sink.on_gradient = None
            for handle in handles:
                handle.remove()

    def find_earliest(self) -> set[ModuleOutput]:
        """The observed outputs that depend on no other observed output."""
        observed = {edge.node for edge in self.edges.values()}
        # For each node, whether backward gets from there to an observed node. Filled in post-order.
        reaches_observed: dict[Any, bool] = {}
        stack = [(node, False) for node in observed]
        while stack:
            node, inputs_done = stack.pop()
            inputs = [each for each, _ in node.next_functions if each is not None]
            if inputs_done:
                reaches_observed[node] = any(
                    each in observed or reaches_observed[each] for each in inputs
                )
            elif node not in reaches_observed:
                stack.append((node, True))
                stack += [(each, False) for each in inputs if each not in reaches_observed]
        return {output for output, edge in self.edges.items() if not reaches_observed[edge.node]}

    def _watch_starts(self) -> list[RemovableHandle]:
        """Hooks on the modules whose calls have to be replayed."""
        return [
            module.register_forward_pre_hook(self._before_forward, with_kwargs=True)
            for module, paths in self._modules.items()
            if not all(has_closed_form(module, path) for path in paths)
        ]

    def _before_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        own_args, own_kwargs = replace_instances((args, kwargs), Tensor, lambda tensor: tensor)
        start = CallStart(module) if self._forward_running else None
        call = _RunningCall(own_args, own_kwargs, start)
        self._running.setdefault(module, []).append(call)

    def _ended(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> _RunningCall:
        """The call of `module` that ends now; made from these inputs where no start was noted."""
        running = self._running.get(module)
        return running.pop() if running else _RunningCall(args, kwargs, None)

    def _after_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> Any:
        ended = self._ended(module, args, kwargs)
        if not self._forward_running:
            return None
        number = self._last_call[module] = self._last_call.get(module, -1) + 1
        call = ModuleCall(module, start=ended.start)
        result, is_changed = self._observable(module, result)
        known: set[int] = set()  # an output that is returned twice counts once
        for index, output in enumerate(floating_tensors(result)):
            if output.requires_grad and id(output) not in known:
                known.add(id(output))
                observed = ModuleOutput(module, number, index)
                self.edges[observed] = get_gradient_edge(output)
                self.shapes[observed] = output.shape
                inputs = SavedInputs(ended.args, ended.kwargs)
                output.register_hook(_gradient_hook(self._sink, observed, call, inputs))
        return result if is_changed else None

    def _after_recomputation(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> Any:
        ended = self._ended(module, args, kwargs)
        result, is_changed = self._observable(module, result)
        for output in {id(each): each for each in floating_tensors(result)}.values():
            if output.requires_grad:
                SavedInputs(ended.args, ended.kwargs)
        return result if is_changed else None

    def _observable(self, module: nn.Module, result: Any) -> tuple[Any, bool]:
        """What the module returns, changed so that each output has a gradient of its own.

        Returns the result and whether it was changed. Where a module has several outputs, one may
        be computed from another (a router's scores from its logits). The gradient of the logits
        would then include what comes back through the scores. So several outputs are returned as
        views, and the gradient of a view counts its uses outside the module only.
        """
        if isinstance(result, Tensor):
            is_shared = module in self._shared
            return (self._expand_to_examples(result) if is_shared else result), is_shared
        if sum(output.requires_grad for output in floating_tensors(result)) < 2:
            return result, False
        return replace_instances(result, Tensor, _view, is_copied=holds_tensors), True

    def _expand_to_examples(self, output: Tensor) -> Tensor:
        rows = output if output.shape[0] == 1 else output.unsqueeze(0)
        return rows.expand(self._n_examples, *rows.shape[1:])


@dataclass(slots=True)
class _RunningCall:
    """A call and its inputs. Containers among the inputs are copies, because a call may fill them.

    start: as in `ModuleCall`; None where closed forms serve, and in a recomputation.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    start: CallStart | None


@dataclass(slots=True)
class KnownEarliest:
    """The outputs that depend on no other observed output, for one `order` of the outputs."""

    order: tuple[ModuleOutput, ...] = ()
    earliest: tuple[ModuleOutput, ...] = ()


@dataclass(slots=True)
class _GradientSink:
    """The receiver of the running backward pass's gradients; None while no pass is running.

    Hooks refer to this object and not to `ModuleHooks`. `ModuleHooks` holds the graph, and the
    graph holds the hooks, so a reference back would be a cycle. All activations would then stay in
    memory until a garbage collection.
    """

    on_gradient: OnGradient | None = None


def _view(tensor: Tensor) -> Tensor:
    is_output = tensor.is_floating_point() and tensor.requires_grad
    return tensor.view_as(tensor) if is_output else tensor


def _gradient_hook(
    sink: _GradientSink, observed: ModuleOutput, call: ModuleCall, inputs: SavedInputs
) -> Callable[[Tensor], None]:
    def hook(gradient: Tensor) -> None:
        if sink.on_gradient is not None:
            args, kwargs = inputs.pop()
            with torch.no_grad():
                sink.on_gradient(observed, replace(call, args=args, kwargs=kwargs), gradient)

    return hook


def named_hookable(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The path of each module in `module` that takes hooks."""
    return ((name, each) for name, each in module.named_modules() if takes_hooks(each))


def takes_hooks(module: nn.Module) -> bool:
    """Whether hooks can be put on `module`: those of torch.jit take none."""
    return not isinstance(module, torch.jit.ScriptModule)
